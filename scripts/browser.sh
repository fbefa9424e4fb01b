#!/usr/bin/env bash
# Installs Debian's Chromium where it is missing, for the tests of reports; where it can't, says why and goes on.
# Those tests are then skipped by name. setup.sh runs this where PQ_BROWSER=1 asks for it, as .ci/run does.
set -uo pipefail

say() { echo "[browser] $*"; }

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [[ "$(id -u)" != 0 ]] || ! command -v apt-get >/dev/null; then
  say "no Chromium, and installing it takes root and apt-get: the tests of reports in a browser will be skipped"
  exit 0
fi
say "installing chromium"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if timeout 120 apt-get update >"$log" 2>&1 && timeout 600 apt-get install --yes --no-install-recommends chromium >>"$log" 2>&1; then
  rm "$log"
else
  say "chromium could not be installed, so the tests of reports in a browser will be skipped: $(tail -n 1 "$log") ($log)"
fi
