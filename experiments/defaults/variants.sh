#!/usr/bin/env bash
# bash experiments/defaults/variants.sh [FOLDER]: the default private run against faster forms of it, five
# seeds: adapters on the upper third of the layers alone, and half the rounds; and against the method with
# 256 public texts (docs/public_start.md). About two hours on 2 cores. Finished runs are kept.
set -euo pipefail
out=$(realpath -m "${1:-outputs/variants}")
mkdir -p "$out"
{
  for seed in 0 1 2 3 4; do
    echo "dp all $seed adapter.layers=null"
    echo "dp upper_third $seed adapter.layers=upper_third"
    echo "dp half_the_rounds $seed rounds=25"
    echo "dp public $seed strategy=fedsvd_alternate adapter=gradient adapter.calibration=256 data.public=256 start=public"
  done
} | python -m experiments.each "$out/results.jsonl" "$out" +experiment=dp_eps1
python -m experiments.table show "$out/results.jsonl" all
