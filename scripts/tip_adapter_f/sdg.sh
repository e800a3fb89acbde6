#!/usr/bin/env bash
# Tip-Adapter-F, single-domain generalisation: bash scripts/tip_adapter_f/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg TipAdapterF "$@"
