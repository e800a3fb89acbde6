#!/usr/bin/env bash
# CLIP-LoRA, leave one domain out: bash scripts/clip_lora/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg CLIPLoRA "$@"
