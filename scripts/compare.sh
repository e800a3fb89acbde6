#!/usr/bin/env bash
# Several methods, base to new, side by side: bash scripts/compare.sh DATASET [METHOD ...] [OPTION VALUE ...]
# Default methods: ZeroshotCLIP CoOp CoCoOp MetaPrompt. The first word that is a config key (OPTIM.LR, SEED) ends them.
here=$(dirname "${BASH_SOURCE[0]}")
[ $# -gt 0 ] && set -- "$1" --trainer "${@:2}"
exec bash "$here/run.sh" compare "" "$@"
