#!/usr/bin/env bash
# 2SFS, few shots of all classes: bash scripts/twosfs/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot TwoSFS "$@"
