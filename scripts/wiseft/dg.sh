#!/usr/bin/env bash
# WiSE-FT, leave one domain out: bash scripts/wiseft/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg WiSEFT "$@"
