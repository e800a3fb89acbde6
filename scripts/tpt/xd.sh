#!/usr/bin/env bash
# TPT, train on one dataset, test on others: bash scripts/tpt/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd TPT "$@"
