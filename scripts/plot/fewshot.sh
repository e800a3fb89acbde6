#!/usr/bin/env bash
# PLOT, few shots of all classes: bash scripts/plot/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot PLOT "$@"
