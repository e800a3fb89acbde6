#!/usr/bin/env bash
# CLIP-Adapter, leave one domain out: bash scripts/clip_adapter/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg CLIPAdapter "$@"
