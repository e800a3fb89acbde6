#!/usr/bin/env bash
# CoOp, few-shot curve: bash scripts/coop/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot CoOp "$@"
