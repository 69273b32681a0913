"""python -m experiments.defaults.collect FOLDER: table, results.json and docs/accuracy.svg."""

import json
import statistics
import sys
from pathlib import Path

SETTINGS = {
    "eps1": "FedSVD, epsilon 1 (`+experiment=dp_eps1`)",
    "none": "head only, epsilon 1 (`+experiment=dp_eps1 adapter=none`)",
    "nodp": "FedSVD, no privacy (`+experiment=no_dp`)",
}
COLOURS = {"eps1": "#1f5fa8", "none": "#9aa3ad", "nodp": "#c8641b"}
KEYS = ("seed", "accuracy", "test_accuracy", "epsilon_max", "precision", "state_digest", "seconds")


def main(folder: Path) -> None:
    from matplotlib.figure import Figure

    here, results = Path(__file__).resolve().parent, {}
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.6)
    print("| setting | seeds | validation accuracy | test accuracy | largest epsilon | time |")
    print("|---|---|---|---|---|---|")
    for name, title in SETTINGS.items():
        runs = [json.loads((p / "summary.json").read_text()) for p in found(folder, name)]
        if not runs:
            continue
        results[name] = [{key: run[key] for key in KEYS} for run in runs]
        accuracy = spread([r["accuracy"] for r in runs])
        test = spread([r["test_accuracy"] for r in runs])
        largest = [r["epsilon_max"] for r in runs if r["epsilon_max"] is not None]
        spent = f"{max(largest):.3f}" if largest else "-"
        longest = max(r["seconds"] for r in runs) / 60
        print(
            f"| {title} | {len(runs)} | {accuracy} | {test} | {spent} | at most {longest:.1f} min |"
        )
        curves = [curve(p) for p in found(folder, name)]
        rounds = sorted(set.intersection(*(set(c) for c in curves)))
        mean = [statistics.fmean(c[r] for c in curves) for r in rounds]
        axis.plot(rounds, mean, color=COLOURS[name], marker=".", label=title.split(" (")[0])
        low, high = ([f(c[r] for c in curves) for r in rounds] for f in (min, max))
        axis.fill_between(rounds, low, high, color=COLOURS[name], alpha=0.15, lw=0)
    axis.set_xlabel("round")
    axis.set_ylabel("validation accuracy")
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(here.parents[1] / "docs" / "accuracy.svg", metadata={"Date": None})
    (here / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def found(folder: Path, name: str) -> list[Path]:
    return [p.parent for p in sorted(folder.glob(f"{name}_s*/summary.json"))]


def curve(run: Path) -> dict[int, float]:
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    # On the same rows in all rounds.
    return {x["round"]: x.get("subset_accuracy", x["accuracy"]) for x in lines if "accuracy" in x}


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f} (one run)"
    deviation = statistics.stdev(values)
    return f"{statistics.fmean(values):.3f} (sd {deviation:.3f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
