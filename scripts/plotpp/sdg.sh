#!/usr/bin/env bash
# PLOT++, single-domain generalisation: bash scripts/plotpp/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg PLOTPP "$@"
