#!/usr/bin/env bash
# PromptSRC, train on one dataset, test on others: bash scripts/promptsrc/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd PromptSRC "$@"
