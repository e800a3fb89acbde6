#!/usr/bin/env bash
# CoPrompt, leave one domain out: bash scripts/coprompt/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg CoPrompt "$@"
