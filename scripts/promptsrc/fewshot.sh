#!/usr/bin/env bash
# PromptSRC, few shots of all classes: bash scripts/promptsrc/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot PromptSRC "$@"
