#!/usr/bin/env bash
# TaskRes, base to new: bash scripts/taskres/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new TaskRes "$@"
