#!/usr/bin/env bash
# WiSE-FT, base to new: bash scripts/wiseft/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new WiSEFT "$@"
