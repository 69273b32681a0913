#!/usr/bin/env bash
# bash scripts/deploy_local.sh OUT [overrides ...]: a deployment with real processes on this machine.
# A SuperLink and three SuperNodes over loopback with TLS; each node has a folder with its own part of the
# default task, its owner's policy and its account, and nothing else; OUT is the run folder at the server.
# ROUNDS (default 2), EPSILON of the policies (default 1), POLICIES (0: the nodes have none, and refuse).
set -euo pipefail
out=$(realpath -m "${1:?OUT}")
shift
cd "$(dirname "$0")/.."
source scripts/flower_common.sh
read -r port node0 node1 node2 <<< "$(ports 4)"

# An authority of our own, and a certificate of the server for loopback.
tls="$work/tls"
mkdir "$tls"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=fedsvd local authority" \
  -keyout "$tls/ca.key" -out "$tls/ca.crt" 2> /dev/null
openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" \
  -keyout "$tls/server.key" -out "$tls/server.csr" 2> /dev/null
openssl x509 -req -in "$tls/server.csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -CAcreateserial -days 2 \
  -extfile <(printf "subjectAltName=DNS:localhost,IP:127.0.0.1") -out "$tls/server.crt" 2> /dev/null

# What each party holds: three clients their texts, the server what it evaluates on.
python - "$work/data" ${LIMIT:+"$LIMIT"} <<'PY'
import csv, sys
from pathlib import Path
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from fedsvd.config import from_config
from fedsvd.data.partition import partition
from fedsvd.data.task import load_task
from fedsvd.run import config_folder

limit = [f"data.limit={sys.argv[2]}"] if len(sys.argv) > 2 else []
with initialize_config_dir(str(config_folder()), version_base="1.3"):
    config = compose("config", ["partition.alpha=5", "clients.number=3", "clients.per_round=3", *limit])
settings = from_config(OmegaConf.to_container(config, resolve=True))
task = load_task(settings.data, 0)
texts = [task.texts[i] for i in task.train]
parts = partition(texts, task.labels[task.train], 3, settings.partition, 0)
files = {f"client{k}/train.csv": task.train[rows] for k, rows in enumerate(parts)}
files |= {"server/validation.csv": task.validation, "server/test.csv": task.test}
for name, rows in files.items():
    path = Path(sys.argv[1]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([*task.texts[i], task.label_names[task.labels[i]]] for i in rows)
PY

background "$work/superlink.log" flower-superlink --host 127.0.0.1 --port "$port" \
  --ssl-ca-certfile "$tls/ca.crt" --ssl-certfile "$tls/server.crt" --ssl-keyfile "$tls/server.key" \
  --disable-runtime-dependency-installation
wait_for "$port" "$work/superlink.log"
nodes=("$node0" "$node1" "$node2")
for k in 0 1 2; do
  mkdir "$work/home$k"
  # What the owner of the node allows; the account is made once and never by the node itself.
  own="$work/owner$k"
  mkdir -m 700 "$own"
  (umask 077 && cat > "$own/policy.yaml") <<EOF
id: reviews of client $k
ledger: $own/ledger.json
data:
  path: $work/data/client$k
  labels: [negative, positive]
privacy:
  epsilon: ${EPSILON:-1}
  delta: 1.0e-5
  clip_norm: 0.5
EOF
  python -m fedsvd.node init "$own/policy.yaml" > /dev/null
  policy=" policy=\"$own/policy.yaml\""
  if [ "${POLICIES:-1}" = 0 ]; then policy=; fi
  FLWR_HOME="$work/home$k" background "$work/supernode$k.log" python -m fedsvd.node serve \
    --root-certificates "$tls/ca.crt" --superlink "127.0.0.1:$port" --port "${nodes[$k]}" \
    --node-config "partition-id=$k num-partitions=3$policy"
done
printf '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:%s"\nroot-certificates = "%s"\n' \
  "$port" "$tls/ca.crt" > "$FLWR_HOME/config.toml"

overrides="+experiment=dp_eps1 partition=own clients.number=3 clients.per_round=3 rounds=${ROUNDS:-2}"
overrides+=" privacy.secure_noise=true privacy.diagnostics=false $*"
server="data.path=$work/data/server data.filter=null data.label_type=names"
follow here "$out" --run-config "overrides=\"$overrides\" server=\"$server\" folder=\"$out\""
for k in 0 1 2; do python -m fedsvd.node show "$work/owner$k/policy.yaml" | tail -1; done
echo "run folder: $out"
