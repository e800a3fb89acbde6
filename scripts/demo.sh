#!/usr/bin/env bash
# Four methods on drawn pictures with the CLIP that comes along, base to new and leave one domain out: a table and a
# figure each. One seed and two runs at a time, unless SEEDS and JOBS say otherwise; words and variables as of compare.sh.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
export SEEDS="${SEEDS:-1}" JOBS="${JOBS:-2}"
bash "$here/compare.sh" shapes "$@"
echo
exec bash "$here/compare.sh" shapes --protocol dg "$@"
