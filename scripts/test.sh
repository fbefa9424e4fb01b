#!/usr/bin/env bash
# Sets up what is missing, then runs the tests: all of them in several processes, PQ_TEST_WORKERS of them (one a core, at
# most four, unless set); or those that the arguments tell pytest, in one. Real data is looked for in ../shared/data or
# where PQ_DATA points; tests that need it, or a GPU, skip by name where it is absent.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # threads that wait must not spin: on a busy machine they starve the others
[[ $# == 0 ]] || exec .venv/bin/python -m pytest "$@"
cores=$(getconf _NPROCESSORS_ONLN)
workers="${PQ_TEST_WORKERS:-$((cores < 4 ? cores : 4))}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > workers ? cores / workers : 1))}"
# In the files' own order: by the number of their tests, those that take minutes would come last, one process waiting.
exec .venv/bin/python -m pytest --numprocesses "$workers" --dist loadfile --no-loadscope-reorder
