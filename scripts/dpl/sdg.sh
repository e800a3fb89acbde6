#!/usr/bin/env bash
# DPL, single-domain generalisation: bash scripts/dpl/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg DPL "$@"
