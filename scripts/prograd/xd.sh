#!/usr/bin/env bash
# ProGrad, one dataset to others: bash scripts/prograd/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd ProGrad "$@"
