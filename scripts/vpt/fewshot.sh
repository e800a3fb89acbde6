#!/usr/bin/env bash
# VPT, few shots of all classes: bash scripts/vpt/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot VPT "$@"
