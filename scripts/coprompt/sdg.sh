#!/usr/bin/env bash
# CoPrompt, single-domain generalisation: bash scripts/coprompt/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg CoPrompt "$@"
