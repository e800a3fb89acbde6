#!/usr/bin/env bash
# ProGrad, few-shot: bash scripts/prograd/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot ProGrad "$@"
