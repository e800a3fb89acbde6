#!/usr/bin/env bash
# CLIP-LoRA, base to new: bash scripts/clip_lora/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new CLIPLoRA "$@"
