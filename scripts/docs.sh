#!/usr/bin/env bash
# Builds the API documentation into build/docs; a warning is an error. Sets up what is missing first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -x .venv/bin/mkdocs ]] || ./scripts/setup.sh
exec .venv/bin/mkdocs build --strict --quiet "$@"
