#!/usr/bin/env bash
# each.sh RESULTS.jsonl FOLDER OVERRIDES...: reads lines "SETTING VARIANT SEED OVERRIDES..." and makes each run
# that RESULTS.jsonl does not hold yet, in FOLDER/SETTING/VARIANT/sSEED; JOBS at a time (default 2), one
# thread each. It may be stopped and started again; another RESULTS.jsonl makes all runs anew.
set -euo pipefail
RESULTS=$1
FOLDER=$2
shift 2
COMMON="$*"
one() {
  read -r -a words <<< "$1 $COMMON"
  setting=${words[0]} variant=${words[1]} seed=${words[2]}
  grep -qs "\"setting\": \"$setting\", \"variant\": \"$variant\", \"seed\": $seed," "$RESULTS" && return 0
  run="$FOLDER/$setting/$variant/s$seed"
  rm -rf "$run"
  mkdir -p "$(dirname "$run")"
  python -m fedsvd.run "${words[@]:3}" seed="$seed" engine.threads=1 hydra.run.dir="$run" > "$run.log" 2>&1 \
    && python -m experiments.table add "$RESULTS" "$run" "$setting" "$variant" "$seed" \
    || echo "failed: $run.log"
}
export -f one
export RESULTS FOLDER COMMON OMP_NUM_THREADS=1
# glibc keeps freed memory: a step's tensors are not faulted in anew (8 % of a run's time).
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000
xargs -d '\n' -P "${JOBS:-2}" -I{} bash -c 'one "$1"' _ {}
