#!/usr/bin/env bash
# MMRL, train on one dataset, test on others: bash scripts/mmrl/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd MMRL "$@"
