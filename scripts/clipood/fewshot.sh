#!/usr/bin/env bash
# CLIPood, few shots of all classes: bash scripts/clipood/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot CLIPood "$@"
