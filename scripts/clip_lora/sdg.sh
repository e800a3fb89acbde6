#!/usr/bin/env bash
# CLIP-LoRA, single-domain generalisation: bash scripts/clip_lora/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg CLIPLoRA "$@"
