#!/usr/bin/env bash
# Linear probe, one dataset to others: bash scripts/linear_probe/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd LinearProbe "$@"
