#!/usr/bin/env bash
# CLIPood, train on one dataset, test on others: bash scripts/clipood/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd CLIPood "$@"
