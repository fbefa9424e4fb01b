#!/usr/bin/env bash
# Sets up what is missing: the virtual environment .venv, torch and the other libraries, the kernels.
# Asks nothing; a second run only checks and takes seconds. PYTHON chooses the interpreter (3.11 or newer);
# PQ_BROWSER=1 installs Chromium too, where that can be done: the tests of reports open their pages in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "[setup] $*"; }

python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "setup.sh: error: Python 3.11 or newer is needed, '$python' is not; set PYTHON=/path/to/python3.11" >&2
  exit 2
}
[[ -x .venv/bin/python ]] || { say "making the virtual environment .venv"; "$python" -m venv .venv; }

export PATH="$PWD/.venv/bin:$PATH" # for its ninja, as kernels/build_all.sh will take it

# What is installed follows from these two files alone; their digest says whether it is up to date.
stamp=.venv/.installed
digest=$(cat pyproject.toml setup.py | cksum)
if [[ "$(cat "$stamp" 2>/dev/null)" != "$digest" ]]; then
  say "installing torch and torchvision (5 GB with CUDA's libraries, some minutes the first time)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check torch torchvision "setuptools>=77" wheel ninja
  say "installing the other libraries, and this package in place, and building the kernels"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[dev]"
  echo "$digest" >"$stamp"
else
  say "the libraries are there; checking the kernels"
fi
[[ "${PQ_BROWSER:-0}" != 1 ]] || ./scripts/browser.sh
build_log=.venv/build.log
PYTHON=.venv/bin/python ./kernels/build_all.sh >"$build_log" 2>&1 || {
  tail -n 30 "$build_log" >&2
  echo "setup.sh: error: building the kernels failed, the whole output is in $build_log; PQ_CUDA=0 leaves CUDA out" >&2
  exit 2
}
say "ready; kernels: $(tail -n 1 "$build_log")"
