#!/usr/bin/env bash
# bash experiments/attacks/run.sh [FOLDER [RESULTS.jsonl]]: robust rules against one of seven clients that does
# harm, without privacy, three seeds; then a table for every attack. FFA with orthonormal A is what they are
# compared with. Two runs at a time; see experiments/each.py.
set -euo pipefail
here=$(dirname "$0")
out=$(realpath -m "${1:-outputs/attacks}")
results=$(realpath -m "${2:-$here/results.jsonl}")
for seed in 0 1 2; do
  for attack in none label_flip sign_flip scaled gaussian; do
    for rule in ffa geometric_median rsvd_dpd median trimmed_mean krum multi_krum bulyan; do
      clients="attack.clients=[0]"
      [ $attack = none ] && clients=""
      echo "$attack $rule $seed attack=$attack $clients strategy=$rule"
    done
  done
done | python -m experiments.each "$results" "$out" +experiment=no_dp adapter.init=orthonormal rounds=6 \
  clients.number=7 clients.participation=all training.batch_size=64 recorder.evaluate_every=6
python -m experiments.table show "$results" ffa
