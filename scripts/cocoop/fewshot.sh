#!/usr/bin/env bash
# CoCoOp, few-shot curve: bash scripts/cocoop/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot CoCoOp "$@"
