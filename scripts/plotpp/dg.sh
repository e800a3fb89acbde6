#!/usr/bin/env bash
# PLOT++, leave one domain out: bash scripts/plotpp/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg PLOTPP "$@"
