#!/usr/bin/env bash
# Tip-Adapter, few-shot: bash scripts/tip_adapter/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot TipAdapter "$@"
