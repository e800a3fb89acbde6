#!/usr/bin/env bash
# Tip-Adapter, one dataset to others: bash scripts/tip_adapter/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd TipAdapter "$@"
