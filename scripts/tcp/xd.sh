#!/usr/bin/env bash
# TCP, one dataset to others: bash scripts/tcp/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd TCP "$@"
