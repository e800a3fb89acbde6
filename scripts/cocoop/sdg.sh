#!/usr/bin/env bash
# CoCoOp, single-domain generalisation: bash scripts/cocoop/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg CoCoOp "$@"
