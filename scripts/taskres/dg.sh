#!/usr/bin/env bash
# TaskRes, leave one domain out: bash scripts/taskres/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg TaskRes "$@"
