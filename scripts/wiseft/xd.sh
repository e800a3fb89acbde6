#!/usr/bin/env bash
# WiSE-FT, train on one dataset, test on others: bash scripts/wiseft/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd WiSEFT "$@"
