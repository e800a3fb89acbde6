#!/usr/bin/env bash
# CLIP-Adapter, base to new: bash scripts/clip_adapter/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new CLIPAdapter "$@"
