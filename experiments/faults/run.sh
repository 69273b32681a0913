#!/usr/bin/env bash
# bash experiments/faults/run.sh [FOLDER [RESULTS.jsonl]]: each kind of fault in 30 % of the clients drawn, at
# epsilon 3, against the run without faults; then the table. SEEDS="0 1 2" for more seeds than one.
# Two runs at a time; see experiments/each.py.
set -euo pipefail
here=$(dirname "$0")
out=$(realpath -m "${1:-outputs/faults}")
results=$(realpath -m "${2:-$here/results.jsonl}")
for seed in ${SEEDS:-0}; do
  echo "dp_eps3 none $seed"
  for kind in raise hang nan inf names shapes dtypes stale repeated unknown mixed; do
    deadline=""
    [ $kind = hang ] && deadline="faults.deadline=15"
    echo "dp_eps3 $kind $seed faults=injected faults.rate=0.3 faults.kind=$kind $deadline"
  done
done | python -m experiments.each "$results" "$out" +experiment=dp_eps3 rounds=20 training.batch_size=64 \
  recorder.evaluate_every=20
python -m experiments.table show "$results" none
