#!/usr/bin/env bash
# TaskRes, few-shot: bash scripts/taskres/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot TaskRes "$@"
