#!/usr/bin/env bash
# Linear probe, leave one domain out: bash scripts/linear_probe/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg LinearProbe "$@"
