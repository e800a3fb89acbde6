#!/usr/bin/env bash
# VPT, base to new: bash scripts/vpt/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new VPT "$@"
