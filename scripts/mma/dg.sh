#!/usr/bin/env bash
# MMA, leave one domain out: bash scripts/mma/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg MMA "$@"
