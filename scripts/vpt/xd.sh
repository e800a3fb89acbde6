#!/usr/bin/env bash
# VPT, train on one dataset, test on others: bash scripts/vpt/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd VPT "$@"
