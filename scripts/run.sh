#!/usr/bin/env bash
# The shared part of all scripts: environment variables -> flags of `metaprompt protocol`.
#
#   run.sh PROTOCOL TRAINERS DATASET [OPTION VALUE ...]
#
# DATA (default ./data), OUTPUT (./output), SEEDS ("1 2 3"; 1 for zeroshot), SHOTS (16; 1 for dg and sdg; "1 2 4 8 16"
# for fewshot), BACKBONE and CFG (by default the method's published ViT-B/16 config; "CoOp=a.yaml MetaPrompt=b.yaml" for
# several methods), TARGETS (xd: datasets to test on), JOBS (runs at a time, one GPU for each; 1), RANKS (processes that
# make each run together, one GPU for each; 1), PREFLIGHT (1: say what is missing, what the runs need and how long they
# take), DRY_RUN (1: list the runs), PREPARE (1: first get the data and the CLIP where they can be fetched), KEEP_GOING
# (1: make what can be made where some runs cannot). Several datasets go in quotes: "caltech101 dtd". Paths are relative
# to the folder you are in. Flags of `metaprompt protocol` may stand before the options: --status,
# --table, --variant lr01 OPTIM.LR 0.01, or --launcher slurm --cluster FILE.yaml for a Slurm cluster (docs/SCALING.md).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/variables.sh"
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
protocol=$1 trainers=$2
shift 2
if [ $# -lt 1 ] || [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    echo "usage: bash SCRIPT DATASET [OPTION VALUE ...]   (a dataset is a file of configs/datasets, such as caltech101)"
    sed -n '2,14s/^# \{0,1\}//p' "$root/scripts/run.sh"
    [ $# -ge 1 ] && exit 0 || exit 2
fi
# A dataset may be the path of a YAML file with spaces; a list of names has none but between them. Behind flags it is
# found by its name.
datasets=()
case $1 in
    -*) ;;
    *) if [ -f "$1" ]; then datasets=(--dataset "$1"); else datasets=(--dataset $1); fi
       shift ;;
esac
python=python3
[ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python
flags=()
[ -n "${SEEDS:-}" ] && flags+=(--seeds $SEEDS)
[ -n "$trainers" ] && flags+=(--trainer $trainers)
flags+=(${datasets[@]+"${datasets[@]}"} --root "${DATA:-./data}" --output "${OUTPUT:-./output}")
[ -n "${SHOTS:-}" ] && flags+=(--shots $SHOTS)
[ -n "${TARGETS:-}" ] && flags+=(--targets $TARGETS)
[ -n "${BACKBONE:-}" ] && flags+=(--backbone "$BACKBONE")
if [ -f "${CFG:-}" ]; then flags+=(--cfg "$CFG"); elif [ -n "${CFG:-}" ]; then flags+=(--cfg $CFG); fi
[ -n "${JOBS:-}" ] && flags+=(--jobs "$JOBS")
for pair in DRY_RUN:--dry-run PREFLIGHT:--preflight PREPARE:--prepare KEEP_GOING:--keep-going; do
    name=${pair%%:*}
    if [ "${!name:-0}" != 0 ]; then flags+=("${pair##*:}"); fi
done
# An empty entry stands for the working folder, whose files are not to be taken for modules.
if [ -n "${PYTHONPATH:-}" ]; then
    PYTHONPATH=$(printf %s "$PYTHONPATH" | tr -s : | sed 's/^://; s/:$//')
fi
together=()
if [ "${RANKS:-1}" != 1 ]; then
    [[ $RANKS =~ ^[1-9][0-9]*$ ]] || { echo "error: RANKS is a number of processes, not '$RANKS'" >&2; exit 2; }
    # `-m` would have it look into the working folder first (-P, against that, is Python 3.11's); so has -c, at first.
    together=(-c 'import sys; sys.path = [p for p in sys.path if p]; from torch.distributed.run import main; main()'
        --standalone --nproc-per-node "$RANKS")
fi
exec "$python" ${together[@]+"${together[@]}"} "$root/metaprompt.py" protocol "$protocol" "${flags[@]}" "$@"
