#!/usr/bin/env bash
# CoOp, single-domain generalisation: bash scripts/coop/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg CoOp "$@"
