#!/usr/bin/env bash
# MaPLe, single-domain generalisation: bash scripts/maple/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg MaPLe "$@"
