#!/usr/bin/env bash
# CoPrompt, few shots of all classes: bash scripts/coprompt/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot CoPrompt "$@"
