#!/usr/bin/env bash
# MetaPrompt, cross-dataset: bash scripts/metaprompt/xd.sh SOURCE [OPTION VALUE ...]   (TARGETS="pacs dtd" tests on those)
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd MetaPrompt "$@"
