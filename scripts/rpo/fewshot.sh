#!/usr/bin/env bash
# RPO, few shots of all classes: bash scripts/rpo/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot RPO "$@"
