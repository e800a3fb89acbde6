#!/usr/bin/env bash
# ProGrad, single-domain generalisation: bash scripts/prograd/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg ProGrad "$@"
