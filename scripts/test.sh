#!/usr/bin/env bash
# Sets up what is missing, then runs the tests. Arguments go to pytest. Real data is looked for in ../shared/data or
# where PQ_DATA points; tests that need it, or a GPU, skip by name where it is absent.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # threads that wait must not spin: on a busy machine they starve the others
exec .venv/bin/python -m pytest "$@"
