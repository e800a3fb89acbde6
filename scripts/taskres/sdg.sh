#!/usr/bin/env bash
# TaskRes, single-domain generalisation: bash scripts/taskres/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg TaskRes "$@"
