# Sourced by the scripts: refuses variables that are nearly those they read (scripts/run.sh) and would change nothing.
# It also switches globbing off: the lists of words that they take apart (SEEDS, TARGETS, methods) are no patterns. An
# expansion without quotes is then parted at spaces, tabs and line breaks, also those of Windows, and nothing else.
set -f
IFS=$' \t\r\n'
for pair in SEED:SEEDS SHOT:SHOTS NUM_SHOTS:SHOTS TARGET:TARGETS JOB:JOBS NUM_JOBS:JOBS CFGS:CFG BACKBONES:BACKBONE \
    DRYRUN:DRY_RUN OUTPUTS:OUTPUT OUTPUT_DIR:OUTPUT DATA_ROOT:DATA NUM_RANKS:RANKS; do
    name=${pair%%:*}
    if [ -n "${!name:-}" ]; then
        echo "error: $name='${!name}' is not read by the scripts; give ${pair##*:} instead, or unset it" >&2
        exit 2
    fi
done
for name in DATASET ${DATASETS_ARE_READ:-DATASETS} TRAINER TRAINERS METHOD METHODS; do
    if [ -n "${!name:-}" ]; then
        echo "error: $name='${!name}' is not read by the scripts; datasets and methods are words of the command:" \
            'bash scripts/compare.sh "caltech101 dtd" CoOp MetaPrompt' >&2
        exit 2
    fi
done
