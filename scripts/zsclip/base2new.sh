#!/usr/bin/env bash
# ZeroshotCLIP, base to new: bash scripts/zsclip/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new ZeroshotCLIP "$@"
