#!/usr/bin/env bash
# bash experiments/strategies/run.sh [FOLDER [RESULTS.jsonl]]: every strategy on the default task, without
# privacy and at epsilon 3, three seeds; then the table. 10 rounds of half batches, one learning rate a
# setting for all, nothing tuned. Two runs at a time; about an hour on 2 cores. Runs that the
# results hold are not made again: see experiments/each.py. VARIANTS=.../options.txt makes those of options.
set -euo pipefail
here=$(dirname "$0")
out=$(realpath -m "${1:-outputs/strategies}")
results=$(realpath -m "${2:-$here/results.jsonl}")
for seed in ${SEEDS:-0 1 2}; do
  for setting in dp_eps3 no_dp; do
    while read -r variant arguments; do
      echo "$setting $variant $seed +experiment=$setting $arguments"
    done < "${VARIANTS:-$here/variants.txt}"
  done
done | python -m experiments.each "$results" "$out" rounds=10 training.batch_size=64 recorder.evaluate_every=10
python -m experiments.table show "$results" ffa_orthonormal "${results%.jsonl}.svg"
