#!/usr/bin/env bash
# RPO, train on one dataset, test on others: bash scripts/rpo/xd.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd RPO "$@"
