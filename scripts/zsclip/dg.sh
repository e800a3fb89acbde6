#!/usr/bin/env bash
# ZeroshotCLIP, leave one domain out: bash scripts/zsclip/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg ZeroshotCLIP "$@"
