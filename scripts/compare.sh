#!/usr/bin/env bash
# Several methods, base to new, side by side: bash scripts/compare.sh DATASET [METHOD ...] [OPTION VALUE ...]
# Default methods: ZeroshotCLIP CoOp CoCoOp MetaPrompt. Options are recognised by their dot (OPTIM.LR 0.01).
here=$(dirname "${BASH_SOURCE[0]}")
dataset=("${@:1:1}") methods=""
[ $# -gt 0 ] && shift
while [ $# -gt 0 ] && [[ $1 != *.* && $1 != -* ]]; do
    methods+=" $1"
    shift
done
exec bash "$here/run.sh" compare "${methods# }" "${dataset[@]}" "$@"
