#!/usr/bin/env bash
# KgCoOp, base to new: bash scripts/kgcoop/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new KgCoOp "$@"
