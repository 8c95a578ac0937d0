#!/usr/bin/env bash
# Sets everything up, lints, type-checks and tests. Further arguments go to pytest; --nightly adds the long tests;
# --distributed runs those alone that start object stores, databases, brokers and clusters (an hour, several GB of memory).
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
export DAGSTER_DISABLE_TELEMETRY=1
if [[ ${1:-} == --distributed ]]; then
  shift
  scripts/setup.sh --distributed
  export HEALTHINGEST_DISTRIBUTED=1
  exec "${HEALTHINGEST_VENV:-.venv-distributed}/bin/python" -m pytest healthingest_tests/distributed "$@"
fi
scripts/setup.sh --dev
bin=${HEALTHINGEST_VENV:-.venv}/bin
if [[ ${1:-} == --nightly ]]; then
  shift
  export HEALTHINGEST_NIGHTLY=1
fi
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
# Two at a time; a file stays with one of them, since its tests share servers and browsers.
# Files in their order: those that wait for servers and kills come first, and not all alone at the end.
exec "$bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
