#!/usr/bin/env bash
# DePT on CoOp, leave one domain out: bash scripts/dept/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg DePT "$@"
