#!/usr/bin/env bash
# Makes .venv with the locked dependencies; --dev adds those for tests, --distributed makes .venv-distributed, which also
# has the engines and launchers of docs/distributed.md. Safe to repeat, quick the second time.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # without bytecode every process recompiles Dagster: 2.5 s instead of 0.9 s
lock=requirements.lock
venv=${HEALTHINGEST_VENV:-.venv}
[[ ${1:-} == --dev ]] && lock=requirements-dev.lock
if [[ ${1:-} == --distributed ]]; then
  lock=requirements-distributed.lock
  venv=${HEALTHINGEST_VENV:-.venv-distributed}
fi

# The folder counts too: a virtual environment does not survive a move.
stamp_of() { { pwd; cat "$1" pyproject.toml scripts/setup.sh; } | sha256sum | cut -c1-16; }
wanted=$(stamp_of "$lock")
have=$(cat "$venv/.healthingest-stamp" 2>/dev/null || true)
# The development set holds the other one: nothing to do if it is there.
if [[ $have == "$wanted" || $have == "$(stamp_of requirements-dev.lock)" ]]; then
  exit 0
fi

python=
for candidate in python3.11 python3.12 python3.13 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [[ -z $python ]]; then
  echo "setup: Python 3.11 or later is needed; install it and run this again." >&2
  exit 1
fi

echo "setup: installing the locked dependencies into $venv (once, about a minute)" >&2
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
# --no-deps: the lock file is complete, and pip 23 refuses hashes together with extras otherwise.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$lock" 2> >(grep -v '^WARNING: Location' >&2)
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . 2> >(grep -v '^WARNING: Location' >&2)
"$venv/bin/python" -m compileall -q healthingest "$venv"/lib/python3*/site-packages >/dev/null 2>&1 || true
echo "$wanted" >"$venv/.healthingest-stamp"
