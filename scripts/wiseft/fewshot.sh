#!/usr/bin/env bash
# WiSE-FT, few shots of all classes: bash scripts/wiseft/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot WiSEFT "$@"
