#!/usr/bin/env bash
# RPO, leave one domain out: bash scripts/rpo/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg RPO "$@"
