#!/usr/bin/env bash
# ProMetaR, single-domain generalisation: bash scripts/prometar/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg ProMetaR "$@"
