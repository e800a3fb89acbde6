#!/usr/bin/env bash
# CoCoOp, base to new: bash scripts/cocoop/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new CoCoOp "$@"
