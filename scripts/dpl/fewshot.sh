#!/usr/bin/env bash
# DPL, few shots of all classes: bash scripts/dpl/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot DPL "$@"
