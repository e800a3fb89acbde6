#!/usr/bin/env bash
# MMA, train on one dataset, test on others: bash scripts/mma/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd MMA "$@"
