#!/usr/bin/env bash
# Writes the three lock files (hashes, no index address) from pyproject.toml. Needs `uv`; run after changing a dependency.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() {
  uv pip compile pyproject.toml "$@" --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links --quiet
}
lock --extra build -o requirements.lock
lock --extra build --extra aws --extra vault --extra dev -c requirements.lock -o requirements-dev.lock
lock --extra build --extra aws --extra vault --extra dev --extra postgres --extra celery --extra ray --extra spark \
  --extra distributed -c requirements.lock -o requirements-distributed.lock
