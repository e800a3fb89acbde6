#!/usr/bin/env bash
# MetaPrompt, few-shot curve: bash scripts/metaprompt/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot MetaPrompt "$@"
