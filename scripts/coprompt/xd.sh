#!/usr/bin/env bash
# CoPrompt, train on one dataset, test on others: bash scripts/coprompt/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd CoPrompt "$@"
