#!/usr/bin/env bash
# TCP, base to new: bash scripts/tcp/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new TCP "$@"
