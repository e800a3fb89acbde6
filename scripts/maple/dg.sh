#!/usr/bin/env bash
# MaPLe, leave one domain out: bash scripts/maple/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg MaPLe "$@"
