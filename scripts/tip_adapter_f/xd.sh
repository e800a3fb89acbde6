#!/usr/bin/env bash
# Tip-Adapter-F, one dataset to others: bash scripts/tip_adapter_f/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd TipAdapterF "$@"
