#!/usr/bin/env bash
# TCP, leave one domain out: bash scripts/tcp/dg.sh DATASET [OPTION VALUE ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" dg TCP "$@"
