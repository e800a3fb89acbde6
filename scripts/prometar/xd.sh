#!/usr/bin/env bash
# ProMetaR, train on one dataset, test on others: bash scripts/prometar/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd ProMetaR "$@"
