#!/usr/bin/env bash
# bash scripts/sweep_privacy.sh [more overrides]: epsilon 1, 3 and 6, three seeds each, one after another.
set -euo pipefail
python -m fedsvd.run -m +experiment=dp_eps1 privacy.epsilon=1,3,6 seed=0,1,2 "$@"
