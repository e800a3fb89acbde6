#!/usr/bin/env bash
# MMRL, single-domain generalisation: bash scripts/mmrl/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg MMRL "$@"
