#!/usr/bin/env bash
# CoOp, leave one domain out: bash scripts/coop/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg CoOp "$@"
