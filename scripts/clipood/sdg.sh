#!/usr/bin/env bash
# CLIPood, single-domain generalisation: bash scripts/clipood/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg CLIPood "$@"
