#!/usr/bin/env bash
# MMA, base to new: bash scripts/mma/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new MMA "$@"
