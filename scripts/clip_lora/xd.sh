#!/usr/bin/env bash
# CLIP-LoRA, train on one dataset, test on others: bash scripts/clip_lora/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd CLIPLoRA "$@"
