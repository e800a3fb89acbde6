#!/usr/bin/env bash
# DPL, train on one dataset, test on others: bash scripts/dpl/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd DPL "$@"
