#!/usr/bin/env bash
# MaPLe, train on one dataset, test on others: bash scripts/maple/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd MaPLe "$@"
