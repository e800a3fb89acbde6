#!/usr/bin/env bash
# DePT on CoOp, single-domain generalisation: bash scripts/dept/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg DePT "$@"
