#!/usr/bin/env bash
# Tip-Adapter, leave one domain out: bash scripts/tip_adapter/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg TipAdapter "$@"
