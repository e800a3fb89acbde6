#!/usr/bin/env bash
# PLOT++, train on one dataset, test on others: bash scripts/plotpp/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd PLOTPP "$@"
