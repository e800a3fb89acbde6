#!/usr/bin/env bash
# TCP, single-domain generalisation: bash scripts/tcp/sdg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" sdg TCP "$@"
