#!/usr/bin/env bash
# MaPLe, few shots of all classes: bash scripts/maple/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot MaPLe "$@"
