#!/usr/bin/env bash
# ProGrad, base to new: bash scripts/prograd/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new ProGrad "$@"
