#!/usr/bin/env bash
# CLIP-Adapter, one dataset to others: bash scripts/clip_adapter/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd CLIPAdapter "$@"
