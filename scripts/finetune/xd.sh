#!/usr/bin/env bash
# Full fine-tuning, train on one dataset, test on others: bash scripts/finetune/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd FineTune "$@"
