#!/usr/bin/env bash
# MMRL, base to new: bash scripts/mmrl/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new MMRL "$@"
