#!/usr/bin/env bash
# IVLP, few shots of all classes: bash scripts/ivlp/fewshot.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" fewshot IVLP "$@"
