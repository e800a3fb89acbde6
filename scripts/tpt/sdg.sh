#!/usr/bin/env bash
# TPT, single-domain generalisation: bash scripts/tpt/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg TPT "$@"
