#!/usr/bin/env bash
# 2SFS, base to new: bash scripts/twosfs/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new TwoSFS "$@"
