#!/usr/bin/env bash
# VPT, leave one domain out: bash scripts/vpt/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg VPT "$@"
