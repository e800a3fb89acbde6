#!/usr/bin/env bash
# TaskRes, one dataset to others: bash scripts/taskres/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd TaskRes "$@"
