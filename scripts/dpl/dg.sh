#!/usr/bin/env bash
# DPL, leave one domain out: bash scripts/dpl/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg DPL "$@"
