#!/usr/bin/env bash
# PromptSRC, base to new: bash scripts/promptsrc/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new PromptSRC "$@"
