#!/usr/bin/env bash
# MMA, single-domain generalisation: bash scripts/mma/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg MMA "$@"
