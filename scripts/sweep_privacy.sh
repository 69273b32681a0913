#!/usr/bin/env bash
# bash scripts/sweep_privacy.sh SWEEP_DIR [more overrides]: epsilon 1, 3 and 6, three seeds each, on a Ray
# cluster (RAY_ADDRESS, or one on this machine), then the table. Given again, it goes on where it was.
set -euo pipefail
sweep=${1:?SWEEP_DIR}
shift
python -m fedsvd.run -m +experiment=dp_eps1 privacy.epsilon=1,3,6 seed=0,1,2 hydra/launcher=ray \
  hydra.sweep.dir="$sweep" "$@"
python -m fedsvd.results "$sweep" --baseline privacy.epsilon=1 --csv "$sweep/results.csv"
