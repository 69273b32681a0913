#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, as a rehearsal for a real one.
#   eval "$(bash scripts/ray_cluster.sh up [NODES=2] [CPUS=1 of each])"   sets RAY_ADDRESS
#   bash scripts/ray_cluster.sh down                                      stops what up started, nothing else
# Its state is in RAY_CLUSTER_DIR (default: outputs/ray_cluster).
set -euo pipefail
state=$(realpath -m "${RAY_CLUSTER_DIR:-outputs/ray_cluster}")

up() {
  local nodes=${1:-2} cpus=${2:-1} port temp
  [ ! -e "$state/groups" ] || { echo "a cluster is up already: $state" >&2; exit 2; }
  mkdir -p "$state"
  temp=$(mktemp -d) # short: the paths of sockets may not be long
  echo "$temp" > "$state/temp"
  port=$(python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
  : > "$state/groups"
  for ((k = 0; k < nodes; k++)); do
    local where=(--address "127.0.0.1:$port")
    [ "$k" -gt 0 ] || where=(--head --port "$port" --temp-dir "$temp" --include-dashboard false)
    # In a group of its own, so that down ends this node and no other Ray of this machine.
    setsid ray start "${where[@]}" --node-ip-address 127.0.0.1 --num-cpus "$cpus" --disable-usage-stats \
      --dashboard-agent-listen-port 0 --block > "$state/node$k.log" 2>&1 &
    echo $! >> "$state/groups"
    [ "$k" -gt 0 ] || wait_for "$port"
  done
  if ! python - "127.0.0.1:$port" "$nodes" > "$state/check.log" 2>&1 <<'PY'
import sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 60
while sum(n["Alive"] for n in ray.nodes()) < int(sys.argv[2]):
    assert time.monotonic() < deadline, "not all nodes came up"
    time.sleep(0.2)
PY
  then
    tail -5 "$state"/*.log >&2
    down
    exit 1
  fi
  echo "export RAY_ADDRESS=127.0.0.1:$port"
}

wait_for() {
  for _ in $(seq 300); do
    (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null && return
    sleep 0.2
  done
}

down() {
  [ -e "$state/groups" ] || { echo "no cluster is up: $state" >&2; return; }
  local group
  while read -r group; do kill -TERM -- "-$group" 2> /dev/null || true; done < "$state/groups"
  while read -r group; do
    for _ in $(seq 50); do kill -0 -- "-$group" 2> /dev/null || break; sleep 0.1; done
    kill -KILL -- "-$group" 2> /dev/null || true
  done < "$state/groups"
  rm -rf "$(cat "$state/temp")" "$state"
}

case "${1:-}" in
  up) up "${@:2}" ;;
  down) down ;;
  *) echo "usage: ray_cluster.sh up [NODES] [CPUS] | down" >&2; exit 2 ;;
esac
