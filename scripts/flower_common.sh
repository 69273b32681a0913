# Sourced by flwr_simulation.sh and deploy_local.sh: a place of their own for Flower's files, free
# ports, processes that are gone at the end. Nothing is installed, nothing is reported to anybody.
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
# Ray of Flower's simulation: one of its own, not whatever cluster runs on this machine.
export RAY_ADDRESS=${RAY_ADDRESS:-local}
work=$(mktemp -d)
export FLWR_HOME="$work/home"
mkdir "$FLWR_HOME"
started=()
finish() {
  for group in "${started[@]}"; do kill -TERM -- "-$group" 2> /dev/null || true; done
  for group in "${started[@]}"; do
    for _ in $(seq 50); do kill -0 -- "-$group" 2> /dev/null || break; sleep 0.1; done
    kill -KILL -- "-$group" 2> /dev/null || true
  done
  if [ "${KEEP_LOGS:-0}" = 1 ]; then echo "logs: $work"; else rm -rf "$work"; fi
}
trap finish EXIT

# background LOG COMMAND...: start a process in a group of its own
background() {
  local log=$1
  shift
  setsid "$@" > "$log" 2>&1 &
  started+=($!)
}

# ports N: print N free ports
ports() {
  python - "$1" <<'PY'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in held))
PY
}

# wait_for PORT LOG: until something listens there
wait_for() {
  for _ in $(seq 600); do
    (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return
    sleep 0.2
  done
  echo "nothing listens on port $1" >&2
  tail -20 "$2" >&2
  return 1
}

# follow SUPERLINK OUT ARGUMENTS...: submit the project as a run, show its log, wait for its end
follow() {
  local superlink=$1 out=$2
  shift 2
  timeout "${MOST_SECONDS:-86400}" flwr run flower "$superlink" --stream "$@" | grep -v "^$" || true
  if [ ! -s "$out/summary.json" ]; then
    echo "the run left no $out/summary.json" >&2
    for log in "$work"/*.log; do echo "== $log"; tail -30 "$log"; done >&2
    return 1
  fi
}
