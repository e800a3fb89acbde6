#!/usr/bin/env bash
# IVLP, base to new: bash scripts/ivlp/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new IVLP "$@"
