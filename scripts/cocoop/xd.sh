#!/usr/bin/env bash
# CoCoOp, cross-dataset: bash scripts/cocoop/xd.sh SOURCE [OPTION VALUE ...]   (TARGETS="pacs dtd" tests on those)
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd CoCoOp "$@"
