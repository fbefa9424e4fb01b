#!/usr/bin/env bash
# From a fresh clone to a result: sets everything up, then quantizes the bundled ResNet-20 on handwritten digits to
# 8-bit weights and 4-bit activations and prints float32 beside it. Arguments go to scripts/run_inference.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
exec .venv/bin/python scripts/run_inference.py "$@"
