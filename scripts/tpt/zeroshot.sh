#!/usr/bin/env bash
# TPT on any datasets: bash scripts/tpt/zeroshot.sh "DATASET ..." [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" zeroshot TPT "$@"
