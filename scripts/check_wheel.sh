#!/usr/bin/env bash
# Build the wheel and run the main job, cut to one round, from it in an empty folder.
# Uses the active environment's dependencies; the source tree is out of reach.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m build --wheel --outdir "$work/dist" . > "$work/build.log" 2>&1 || { tail -20 "$work/build.log"; exit 1; }
pip install --quiet --no-deps --target "$work/site" "$work"/dist/*.whl
mkdir "$work/empty"
cd "$work/empty"
PYTHONPATH="$work/site" python -c "import fedsvd; assert fedsvd.__file__.startswith('$work'), fedsvd.__file__"
PYTHONPATH="$work/site" python -m fedsvd.run +experiment=dp_eps1 rounds=1 data.limit=300 hydra.run.dir=run
test -s run/summary.json && test -s run/report.html && test -s run/adapter/adapter_model.safetensors
test -e "$work/site/fedsvd/py.typed"
PYTHONPATH="$work/site" python "$work/site/bin/fedsvd" --version
echo "the wheel runs the main job in an empty folder"
