#!/usr/bin/env bash
# TPT, few shots of all classes: bash scripts/tpt/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot TPT "$@"
