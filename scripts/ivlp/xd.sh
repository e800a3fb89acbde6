#!/usr/bin/env bash
# IVLP, train on one dataset, test on others: bash scripts/ivlp/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd IVLP "$@"
