#!/usr/bin/env bash
# 2SFS, leave one domain out: bash scripts/twosfs/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg TwoSFS "$@"
