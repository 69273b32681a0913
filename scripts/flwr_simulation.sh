#!/usr/bin/env bash
# bash scripts/flwr_simulation.sh OUT [overrides ...]: a run in Flower's own simulation runtime.
# Its run folder is OUT. CLIENTS (default 6) must be clients.number; CPUS are those of a client.
set -euo pipefail
out=$(realpath -m "${1:?OUT}")
shift
cd "$(dirname "$0")/.."
source scripts/flower_common.sh
read -r port <<< "$(ports 1)"
background "$work/superlink.log" flower-superlink --simulation --insecure --host 127.0.0.1 \
  --port "$port" --disable-runtime-dependency-installation
wait_for "$port" "$work/superlink.log"
printf '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:%s"\ninsecure = true\n' \
  "$port" > "$FLWR_HOME/config.toml"
follow here "$out" \
  --federation-config "num-supernodes=${CLIENTS:-6} client-resources-num-cpus=${CPUS:-1}" \
  --run-config "overrides=\"$*\" folder=\"$out\""
echo "run folder: $out"
