#!/usr/bin/env bash
# TCP, few-shot: bash scripts/tcp/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot TCP "$@"
