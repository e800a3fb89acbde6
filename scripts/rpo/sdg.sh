#!/usr/bin/env bash
# RPO, single-domain generalisation: bash scripts/rpo/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg RPO "$@"
