#!/usr/bin/env bash
# Full fine-tuning, single-domain generalisation: bash scripts/finetune/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg FineTune "$@"
