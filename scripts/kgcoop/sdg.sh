#!/usr/bin/env bash
# KgCoOp, single-domain generalisation: bash scripts/kgcoop/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg KgCoOp "$@"
