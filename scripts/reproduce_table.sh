#!/usr/bin/env bash
# The published tables, measured here: bash scripts/reproduce_table.sh base2new|dg [METHOD ...] [OPTION VALUE ...]
#
# base2new: the eleven datasets, 16 shots; dg: PACS, VLCS, OfficeHome and DomainNet, as published, 1 shot (SHOTS=5 for
# five). Default methods: ZeroshotCLIP and MetaPrompt. DATASETS="caltech101 dtd" takes fewer datasets; their averages
# are then not compared. Afterwards the tables are printed with the published averages beside the measured ones
# (docs/RESULTS.md). The other variables are those of the other scripts (scripts/run.sh); finished runs are kept.
set -euo pipefail
here=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DATASETS_ARE_READ=DATASET
. "$here/variables.sh"
case "${1:-}" in
    base2new) datasets="imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd \
eurosat ucf101" ;;
    dg) datasets="pacs vlcs office_home domainnet" ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
       [ $# -eq 0 ] || echo "error: the published tables are base2new and dg; '$1' is none of them" >&2
       exit 2 ;;
esac
protocol=$1
shift
exec env -u DATASETS bash "$here/run.sh" compare "" "${DATASETS:-$datasets}" --protocol "$protocol" --published \
    --trainer "$@"
