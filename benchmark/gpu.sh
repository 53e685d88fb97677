#!/usr/bin/env bash
# All that has to be known about a GPU, in under nine minutes and one table (see gpu.py): bash benchmark/gpu.sh [-o DIR]
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
