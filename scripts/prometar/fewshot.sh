#!/usr/bin/env bash
# ProMetaR, few shots of all classes: bash scripts/prometar/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot ProMetaR "$@"
