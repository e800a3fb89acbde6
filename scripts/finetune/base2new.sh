#!/usr/bin/env bash
# Full fine-tuning, base to new: bash scripts/finetune/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new FineTune "$@"
