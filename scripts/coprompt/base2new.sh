#!/usr/bin/env bash
# CoPrompt, base to new: bash scripts/coprompt/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new CoPrompt "$@"
