#!/usr/bin/env bash
# Linear probe, few-shot: bash scripts/linear_probe/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot LinearProbe "$@"
