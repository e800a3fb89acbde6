#!/usr/bin/env bash
# DePT on CoOp, one dataset to others: bash scripts/dept/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd DePT "$@"
