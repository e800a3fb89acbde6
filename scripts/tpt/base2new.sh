#!/usr/bin/env bash
# TPT, base to new: bash scripts/tpt/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new TPT "$@"
