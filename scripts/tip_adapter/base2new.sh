#!/usr/bin/env bash
# Tip-Adapter, base to new: bash scripts/tip_adapter/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new TipAdapter "$@"
