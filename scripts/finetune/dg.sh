#!/usr/bin/env bash
# Full fine-tuning, leave one domain out: bash scripts/finetune/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg FineTune "$@"
