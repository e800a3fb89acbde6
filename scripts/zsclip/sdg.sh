#!/usr/bin/env bash
# ZeroshotCLIP, single-domain generalisation: bash scripts/zsclip/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg ZeroshotCLIP "$@"
