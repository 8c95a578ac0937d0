#!/usr/bin/env bash
# Sets everything up and runs the pipeline.
#   scripts/run_pipeline.sh          web UI on 127.0.0.1:3000 (PORT), daemon and sensor, quality reports on 3001
#                                    (REPORTS_PORT); Ctrl-C stops all
#   scripts/run_pipeline.sh --once   ingests what has landed, prints a table per file, exits 0 or 1
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
case ${1:-} in
  '' | --once) ;;
  *)
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
umask 077
unset PYTHONDONTWRITEBYTECODE
"$repo/scripts/setup.sh"
export HEALTHINGEST_HOME=${HEALTHINGEST_HOME:-$repo}
export _RJEM_MALLOC_CONF=${_RJEM_MALLOC_CONF:-dirty_decay_ms:300,muzzy_decay_ms:0,narenas:$(nproc)} # as the healthingest command does
export DAGSTER_DISABLE_TELEMETRY=1
bin=$(cd "$repo" && cd "${HEALTHINGEST_VENV:-.venv}" && pwd)/bin
export PATH=$bin:$PATH

if [[ ${1:-} == --once ]]; then
  exec healthingest ingest --all
fi

port=${PORT:-3000}
output=${HEALTHINGEST_OUTPUT:-$HEALTHINGEST_HOME/output}
[[ $output != *://* ]] || output=$HEALTHINGEST_HOME/output # beside an object store, Dagster's own files stay here
export DAGSTER_HOME=${DAGSTER_HOME:-$output/dagster}
mkdir -p "$DAGSTER_HOME"
settings=$([[ ${HEALTHINGEST_ENV:-dev} == prod ]] && echo dagster.yaml || echo dagster.dev.yaml)
[[ -e $DAGSTER_HOME/dagster.yaml ]] || cp "$repo/deploy/$settings" "$DAGSTER_HOME/dagster.yaml"
listening() { (exec 3<>"/dev/tcp/127.0.0.1/${1:-$port}") 2>/dev/null; }
if listening; then
  echo "run_pipeline: port $port is taken; stop what runs there, or choose another: PORT=3001 $0" >&2
  exit 1
fi

# The reports hold counts only; asset pages link to them, and browsers follow no link from a page to a file.
reports=$output/reports
reports_port=${REPORTS_PORT:-$((port + 1))}
serving=
if [[ ${HEALTHINGEST_OUTPUT:-} == *://* ]]; then
  reports=$HEALTHINGEST_OUTPUT/reports # nothing serves them from there
elif listening "$reports_port"; then
  echo "run_pipeline: port $reports_port is taken, so the quality reports are not served; they lie in $reports" >&2
else
  mkdir -p "$reports"
  "$bin/python" -m http.server --bind 127.0.0.1 --directory "$reports" "$reports_port" >/dev/null 2>&1 &
  serving=$!
  export HEALTHINGEST_REPORTS_URL=http://127.0.0.1:$reports_port
fi

log=$DAGSTER_HOME/dagster.log
echo "Starting Dagster (log: $log) ..."
cd "$repo"
# Its own process group, with default signals: a background child of a script ignores INT, and Dagster then TERM too.
setsid env --default-signal=INT,TERM dagster dev -w workspace.yaml -h 127.0.0.1 -p "$port" >>"$log" 2>&1 &
server=$!
stop() {
  trap - INT TERM EXIT
  echo
  echo "Stopping ..."
  [[ -z $serving ]] || kill "$serving" 2>/dev/null || true
  kill -TERM -- "-$server" 2>/dev/null || true
  for _ in $(seq 100); do
    kill -0 -- "-$server" 2>/dev/null || break
    sleep 0.2
  done
  kill -KILL -- "-$server" 2>/dev/null || true
}
trap 'stop; exit 0' INT TERM
trap stop EXIT

until listening; do
  if ! kill -0 "$server" 2>/dev/null; then
    echo "run_pipeline: Dagster did not start; the end of $log says why:" >&2
    tail -5 "$log" >&2
    exit 1
  fi
  sleep 0.3
done
echo "Ingesting what lies in ${HEALTHINGEST_INPUT:-$HEALTHINGEST_HOME/input/raw} ..."
healthingest status --wait "${HEALTHINGEST_WAIT:-300}" || true
cat <<EOF

The system runs. Drop a file like acme_$(date -u +%Y%m%d).csv into the landing zone; it is in silver seconds later.
  what flows where   http://127.0.0.1:$port/assets/silver?view=lineage
  quality checks     http://127.0.0.1:$port/assets/silver?view=checks
  runs               http://127.0.0.1:$port/runs
  quality reports    ${HEALTHINGEST_REPORTS_URL:-$reports}
  the same in text   healthingest status     (in $bin)
Ctrl-C stops everything.
EOF
wait "$server"
