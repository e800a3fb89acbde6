#!/usr/bin/env bash
# ZeroshotCLIP, few-shot curve: bash scripts/zsclip/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot ZeroshotCLIP "$@"
