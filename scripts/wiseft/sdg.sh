#!/usr/bin/env bash
# WiSE-FT, single-domain generalisation: bash scripts/wiseft/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg WiSEFT "$@"
