# Sourced by the scripts: refuses variables that are nearly those they read (scripts/run.sh) and would change nothing.
# It also switches globbing off: the lists of words that they take apart (SEEDS, TARGETS, methods) are no patterns. An
# expansion without quotes is then parted at spaces, tabs and line breaks, also those of Windows, and nothing else.
set -f
IFS=$' \t\r\n'
read_here="DATA OUTPUT SEEDS SHOTS BACKBONE CFG TARGETS JOBS RANKS DRY_RUN"

# slips WORD: a pattern of what differs from it by one letter that is missing, added, another one, or changed places
slips() {
    local word=$1 i before after pattern=""
    for ((i = 0; i <= ${#word}; i++)); do
        before=${word:0:i} after=${word:i}
        pattern+="|$before.$after"
        [ -n "$after" ] && pattern+="|$before${after:1}|$before.${after:1}|$before${after:1:1}${after:0:1}${after:2}"
    done
    printf %s "^(${pattern:1})\$"
}

# refuse NAME MEANT: ends the script where the variable NAME is set
refuse() {
    [ -n "${!1:-}" ] || return 0
    echo "error: $1='${!1}' is not read by the scripts; give $2 instead, or unset it" >&2
    exit 2
}

for pair in SEED:SEEDS NUM_SEEDS:SEEDS SHOT:SHOTS NUM_SHOTS:SHOTS JOB:JOBS NUM_JOBS:JOBS CFGS:CFG OUTPUT_DIR:OUTPUT \
    OUTPUTDIR:OUTPUT DATA_ROOT:DATA DATAROOT:DATA NUM_RANKS:RANKS; do
    refuse "${pair%%:*}" "${pair##*:}"
done
# Other letters of the same name, and slips of the longer ones: a short name has too many neighbours that mean something
# else (DATE). So has RANKS: torchrun and clusters set RANK.
for word in $read_here; do
    pattern=$(slips "$word")
    for name in $(compgen -e); do
        [[ " $read_here " == *" $name "* || $name == RANK ]] && continue
        shopt -s nocasematch
        [[ $name == "$word" ]] && near=yes || near=
        shopt -u nocasematch
        [[ ${#word} -ge 5 && $name =~ $pattern ]] && near=yes
        [ -z "$near" ] || refuse "$name" "$word"
    done
done
for name in DATASET ${DATASETS_ARE_READ:-DATASETS} TRAINER TRAINERS METHOD METHODS; do
    if [ -n "${!name:-}" ]; then
        echo "error: $name='${!name}' is not read by the scripts; datasets and methods are words of the command:" \
            'bash scripts/compare.sh "caltech101 dtd" CoOp MetaPrompt' >&2
        exit 2
    fi
done
