#!/usr/bin/env bash
# ZeroshotCLIP on any datasets: bash scripts/zsclip/zeroshot.sh "DATASET ..." [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zeroshot ZeroshotCLIP "$@"
