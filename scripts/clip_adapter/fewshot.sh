#!/usr/bin/env bash
# CLIP-Adapter, few-shot: bash scripts/clip_adapter/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot CLIPAdapter "$@"
