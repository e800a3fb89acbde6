#!/usr/bin/env bash
# MetaPrompt, single-domain generalisation: bash scripts/metaprompt/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg MetaPrompt "$@"
