#!/usr/bin/env bash
# bash experiments/defaults/run.sh [FOLDER]: the default settings against two controls, three seeds.
# About 40 minutes on 2 cores. Finished runs are kept.
set -euo pipefail
out=$(realpath -m "${1:-outputs/defaults}")
mkdir -p "$out"
for seed in 0 1 2; do
  for setting in "eps1 +experiment=dp_eps1" "none +experiment=dp_eps1 adapter=none" "nodp +experiment=no_dp"; do
    read -r name arguments <<< "$setting"
    [ -f "$out/${name}_s$seed/summary.json" ] && continue
    # The recorded runs: seed 0 of epsilon 1 on two threads, the others with engine.threads=1, and two
    # seeds without privacy. The grouping of a batch changes rounding only; it is fixed to the one of the recorded results.
    # shellcheck disable=SC2086
    python -m fedsvd.run $arguments training.microbatch_tokens=2048 seed="$seed" hydra.run.dir="$out/${name}_s$seed"
  done
done
python -m experiments.defaults.collect "$out"
