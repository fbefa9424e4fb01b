#!/usr/bin/env bash
# Runs the op tests on a GPU under NVIDIA's compute-sanitizer: invalid and uninitialised memory, races in shared memory.
# Needs a GPU, compute-sanitizer (part of the CUDA toolkit) and the built package. Ends at the first tool that complains.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in memcheck racecheck initcheck; do
    echo "== compute-sanitizer --tool $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
        python -m pytest -q -p no:cacheprovider -k cuda tests/ops "$@"
done
