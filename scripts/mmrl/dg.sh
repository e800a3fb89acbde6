#!/usr/bin/env bash
# MMRL, leave one domain out: bash scripts/mmrl/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg MMRL "$@"
