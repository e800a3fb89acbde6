#!/usr/bin/env bash
# RPO, base to new: bash scripts/rpo/base2new.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" base2new RPO "$@"
