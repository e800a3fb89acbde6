#!/usr/bin/env bash
# Linear probe, base to new: bash scripts/linear_probe/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new LinearProbe "$@"
