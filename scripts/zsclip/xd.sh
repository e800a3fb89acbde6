#!/usr/bin/env bash
# ZeroshotCLIP, cross-dataset: bash scripts/zsclip/xd.sh SOURCE [OPTION VALUE ...]   (TARGETS="pacs dtd" tests on those)
exec bash "$(dirname "${BASH_SOURCE[0]}")/../run.sh" xd ZeroshotCLIP "$@"
