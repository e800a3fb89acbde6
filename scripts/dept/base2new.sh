#!/usr/bin/env bash
# DePT on CoOp, base to new: bash scripts/dept/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new DePT "$@"
