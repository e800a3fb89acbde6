#!/usr/bin/env bash
# Full fine-tuning, few shots of all classes: bash scripts/finetune/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot FineTune "$@"
