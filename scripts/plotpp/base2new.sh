#!/usr/bin/env bash
# PLOT++, base to new: bash scripts/plotpp/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new PLOTPP "$@"
