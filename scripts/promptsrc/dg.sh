#!/usr/bin/env bash
# PromptSRC, leave one domain out: bash scripts/promptsrc/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg PromptSRC "$@"
