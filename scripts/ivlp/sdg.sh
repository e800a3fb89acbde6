#!/usr/bin/env bash
# IVLP, single-domain generalisation: bash scripts/ivlp/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg IVLP "$@"
