#!/usr/bin/env bash
# DPL, base to new: bash scripts/dpl/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new DPL "$@"
