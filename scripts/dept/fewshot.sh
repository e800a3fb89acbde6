#!/usr/bin/env bash
# DePT on CoOp, few-shot: bash scripts/dept/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot DePT "$@"
