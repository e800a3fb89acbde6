#!/usr/bin/env bash
# MetaPrompt, leave one domain out: bash scripts/metaprompt/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg MetaPrompt "$@"
