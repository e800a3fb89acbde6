#!/usr/bin/env bash
# KgCoOp, leave one domain out: bash scripts/kgcoop/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg KgCoOp "$@"
