#!/usr/bin/env bash
# 2SFS, single-domain generalisation: bash scripts/twosfs/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg TwoSFS "$@"
