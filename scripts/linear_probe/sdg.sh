#!/usr/bin/env bash
# Linear probe, single-domain generalisation: bash scripts/linear_probe/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg LinearProbe "$@"
