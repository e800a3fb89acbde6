#!/usr/bin/env bash
# CLIP-LoRA, few shots of all classes: bash scripts/clip_lora/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot CLIPLoRA "$@"
