#!/usr/bin/env bash
# Several methods, base to new, side by side: bash scripts/compare.sh DATASET [METHOD ...] [OPTION VALUE ...]
# Default methods: ZeroshotCLIP CoOp CoCoOp MetaPrompt. The first word that is a config key (OPTIM.LR, SEED) ends them.
here=$(dirname "${BASH_SOURCE[0]}")
dataset=("${@:1:1}") methods=""
[ $# -gt 0 ] && shift
keys='^(VERSION|OUTPUT_DIR|RESUME|SEED|USE_CUDA|VERBOSE)$'
while [ $# -gt 0 ] && [[ $1 != *.* && $1 != -* && ! $1 =~ $keys ]]; do
    methods+=" $1"
    shift
done
exec bash "$here/run.sh" compare "${methods# }" "${dataset[@]}" "$@"
