#!/usr/bin/env bash
# KgCoOp, one dataset to others: bash scripts/kgcoop/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd KgCoOp "$@"
