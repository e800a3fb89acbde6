#!/usr/bin/env bash
# CoCoOp, leave one domain out: bash scripts/cocoop/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg CoCoOp "$@"
