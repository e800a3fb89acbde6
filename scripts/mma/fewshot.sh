#!/usr/bin/env bash
# MMA, few shots of all classes: bash scripts/mma/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot MMA "$@"
