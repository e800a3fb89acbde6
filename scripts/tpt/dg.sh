#!/usr/bin/env bash
# TPT, leave one domain out: bash scripts/tpt/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg TPT "$@"
