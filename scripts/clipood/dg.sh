#!/usr/bin/env bash
# CLIPood, leave one domain out: bash scripts/clipood/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg CLIPood "$@"
