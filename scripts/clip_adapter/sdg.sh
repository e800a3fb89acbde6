#!/usr/bin/env bash
# CLIP-Adapter, single-domain generalisation: bash scripts/clip_adapter/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg CLIPAdapter "$@"
