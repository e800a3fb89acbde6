#!/usr/bin/env bash
# PromptSRC, single-domain generalisation: bash scripts/promptsrc/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg PromptSRC "$@"
