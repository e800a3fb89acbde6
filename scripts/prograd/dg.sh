#!/usr/bin/env bash
# ProGrad, leave one domain out: bash scripts/prograd/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg ProGrad "$@"
