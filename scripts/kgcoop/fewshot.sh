#!/usr/bin/env bash
# KgCoOp, few-shot: bash scripts/kgcoop/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot KgCoOp "$@"
