#!/usr/bin/env bash
# 2SFS, train on one dataset, test on others: bash scripts/twosfs/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd TwoSFS "$@"
