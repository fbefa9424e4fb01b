#!/usr/bin/env bash
# Builds the kernels in place, into pytorch_quantizer/: the CPU ones, and the CUDA ones where a toolkit is found.
# Run it from anywhere; quick when nothing changed. PYTHON, PQ_CUDA, CUDA_HOME and TORCH_CUDA_ARCH_LIST are honoured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
beside=$(cd "$(dirname "$(command -v "$PYTHON")")" && pwd)
export PATH="$beside:$PATH" # the same ninja each time: one of another version can't read its log, and builds all anew
"$PYTHON" -W ignore setup.py build_ext --inplace
"$PYTHON" -c 'from pytorch_quantizer.backend import backend; print(backend())'
