#!/usr/bin/env bash
# Tip-Adapter-F, leave one domain out: bash scripts/tip_adapter_f/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg TipAdapterF "$@"
