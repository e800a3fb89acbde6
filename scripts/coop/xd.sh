#!/usr/bin/env bash
# CoOp, cross-dataset: bash scripts/coop/xd.sh SOURCE [OPTION VALUE ...]   (TARGETS="pacs dtd" tests on those)
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd CoOp "$@"
