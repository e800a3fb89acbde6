#!/usr/bin/env bash
# MetaPrompt, base to new: bash scripts/metaprompt/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new MetaPrompt "$@"
