#!/usr/bin/env bash
# CLIPood, base to new: bash scripts/clipood/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new CLIPood "$@"
