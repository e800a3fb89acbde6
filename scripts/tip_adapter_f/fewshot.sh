#!/usr/bin/env bash
# Tip-Adapter-F, few-shot: bash scripts/tip_adapter_f/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot TipAdapterF "$@"
