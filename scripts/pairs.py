"""Record which strategies and adapters go together, so that `--list` need not import them.

python scripts/pairs.py           # writes fedsvd/pairs.json
python scripts/pairs.py --check   # status 1 if it is not up to date
"""

import sys

from fedsvd.composing import config_folder
from fedsvd.execute import quiet
from fedsvd.listing import RECORDED, record

if __name__ == "__main__":
    quiet()
    text = record(config_folder())
    if "--check" not in sys.argv[1:]:
        RECORDED.write_text(text, encoding="utf-8")
    elif not RECORDED.exists() or RECORDED.read_text(encoding="utf-8") != text:
        sys.exit(f"{RECORDED.name} is not up to date; run python scripts/pairs.py")
