#!/usr/bin/env bash
# MaPLe, base to new: bash scripts/maple/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new MaPLe "$@"
