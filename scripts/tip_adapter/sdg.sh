#!/usr/bin/env bash
# Tip-Adapter, single-domain generalisation: bash scripts/tip_adapter/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg TipAdapter "$@"
