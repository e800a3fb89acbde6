#!/usr/bin/env bash
# MMRL, few shots of all classes: bash scripts/mmrl/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot MMRL "$@"
