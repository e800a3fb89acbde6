#!/usr/bin/env bash
# The shared part of all scripts: environment variables -> flags of tools/protocol.py.
#
#   run.sh PROTOCOL TRAINERS DATASET [OPTION VALUE ...]
#
# DATA (default ./data), OUTPUT (./output), SEEDS ("1 2 3"), SHOTS (16; 1 for dg), BACKBONE and CFG (by default the
# method's published ViT-B/16 config). Paths are relative to the folder you are in.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
protocol=$1 trainers=$2
shift 2
if [ $# -lt 1 ] || [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    echo "usage: bash SCRIPT DATASET [OPTION VALUE ...]   (a dataset is a file of configs/datasets, such as caltech101)"
    sed -n '2,7s/^# \{0,1\}//p' "$root/scripts/run.sh"
    [ $# -ge 1 ] && exit 0 || exit 2
fi
dataset=$1
shift
python=python3
[ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
read -ra seeds <<<"${SEEDS:-1 2 3}"
flags=(--seeds "${seeds[@]}")
[ -n "$trainers" ] && flags+=(--trainer $trainers)
flags+=(--dataset "$dataset" --root "${DATA:-./data}" --output "${OUTPUT:-./output}")
[ -n "${SHOTS:-}" ] && flags+=(--shots "$SHOTS")
[ -n "${BACKBONE:-}" ] && flags+=(--backbone "$BACKBONE")
[ -n "${CFG:-}" ] && flags+=(--cfg "$CFG")
exec "$python" "$root/tools/protocol.py" "$protocol" "${flags[@]}" "$@"
