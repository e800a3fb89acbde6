#!/usr/bin/env bash
# Several methods, base to new, side by side: bash scripts/compare.sh DATASET [METHOD ...] [OPTION VALUE ...]
# Default methods: ZeroshotCLIP CoOp CoCoOp MetaPrompt; "all" is every method there is. Names of methods and datasets may
# also stand behind flags and options.
here=$(dirname "${BASH_SOURCE[0]}")
[[ $# -gt 0 && $1 != -* ]] && set -- "$1" --trainer "${@:2}"
exec bash "$here/run.sh" compare "" "$@"
