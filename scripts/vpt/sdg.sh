#!/usr/bin/env bash
# VPT, single-domain generalisation: bash scripts/vpt/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg VPT "$@"
