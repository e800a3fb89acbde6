#!/usr/bin/env bash
# CoOp, base to new: bash scripts/coop/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new CoOp "$@"
