#!/usr/bin/env bash
# ProMetaR, leave one domain out: bash scripts/prometar/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg ProMetaR "$@"
