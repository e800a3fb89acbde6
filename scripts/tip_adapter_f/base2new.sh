#!/usr/bin/env bash
# Tip-Adapter-F, base to new: bash scripts/tip_adapter_f/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new TipAdapterF "$@"
