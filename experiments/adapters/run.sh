#!/usr/bin/env bash
# bash experiments/adapters/run.sh [FOLDER [ADAPTERS.jsonl [HEADS.jsonl]]]: every adapter under FedSVD, or FedAvg
# where it has no factors, without privacy and at epsilon 3; every head under FedSVD at epsilon 1 and 3; three
# seeds; then the tables. 6 rounds of half batches, one learning rate a setting for all, nothing tuned. Runs that
# the results hold are not made again: see experiments/each.py. SEEDS="0" and OVERRIDES="rounds=2 ..." shorten it;
# ADAPTERS=.../adapter_options.txt and HEADS=.../head_options.txt make the runs of further options.
set -euo pipefail
here=$(dirname "$0")
out=$(realpath -m "${1:-outputs/adapters}")
adapters=$(realpath -m "${2:-$here/adapters.jsonl}")
heads=$(realpath -m "${3:-$here/heads.jsonl}")
lines() { # FILE SETTING...
  for seed in ${SEEDS:-0 1 2}; do
    for setting in "${@:2}"; do
      while read -r variant arguments; do
        echo "$setting $variant $seed +experiment=$setting $arguments"
      done < "$1"
    done
  done
}
common="rounds=6 training.batch_size=64 recorder.evaluate_every=6 ${OVERRIDES:-}"
# shellcheck disable=SC2086
lines "${ADAPTERS:-$here/adapters.txt}" dp_eps3 no_dp | python -m experiments.each "$adapters" "$out/adapters" $common
# shellcheck disable=SC2086
lines "${HEADS:-$here/heads.txt}" dp_eps1 dp_eps3 | python -m experiments.each "$heads" "$out/heads" $common
python -m experiments.table show "$adapters" lora "${adapters%.jsonl}.svg"
python -m experiments.table show "$heads" trained_texts "${heads%.jsonl}.svg"
