#!/usr/bin/env bash
# IVLP, leave one domain out: bash scripts/ivlp/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg IVLP "$@"
