#!/usr/bin/env bash
# ProMetaR, base to new: bash scripts/prometar/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new ProMetaR "$@"
