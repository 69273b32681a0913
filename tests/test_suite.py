"""The benchmark's runs: what is asked for, what is chosen, what a table says."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.suite import __main__ as suite_command
from experiments.suite import pages
from experiments.suite.__main__ import main
from experiments.suite.cost import cost
from experiments.suite.figures import draw
from experiments.suite.gains import gains
from experiments.suite.plan import FILE, Cell, Trial, cells, grid, load, overrides
from experiments.suite.records import best, edges, neighbours, read, record
from experiments.suite.tables import _after, paired, reported, searched, table
from fedsvd import run
from fedsvd.composing import settings_of as composed
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair
from fedsvd.strategies.use import check_use

SUITE = load()
CELL = Cell("squad_pairs", "bert_tiny", "natural", "frozen", "1", "fedsvd")


def settings_of(trial: Trial) -> Any:
    settings = composed(overrides(SUITE, trial))
    strategy = build_strategy(settings.strategy)
    check_use(settings, strategy)
    check_pair(settings, strategy, run.config_folder())
    return settings


# Each method in one setting of its own, in turn, and one method in every setting.
EVERY = list(cells(SUITE, tasks=["squad_pairs"], models=["bert_tiny"]))
TURN = [
    [cell for cell in EVERY if cell.method == method][n % 3 :: 7]
    for n, method in enumerate(SUITE["methods"])
]


@pytest.mark.parametrize(
    "chosen",
    [*TURN, [cell for cell in EVERY if cell.method == "fedsvd"]],
    ids=lambda chosen: chosen[0].method,
)
def test_every_method_composes_in_its_settings(chosen: list[Cell]) -> None:
    assert chosen
    for cell in chosen:
        trial = next(grid(SUITE, cell))
        settings = settings_of(trial)
        assert settings.seed == 100
        assert not settings.recorder.test
        assert settings.training.lr == trial.lr
        private = settings.privacy.unit != "none"
        clip = settings.privacy.clip_norm if private else settings.training.clip_norm
        assert clip == trial.clip
        assert (settings.privacy.epsilon if private else "none") == (
            {"paper": 1.0}.get(cell.budget) or float(cell.budget) if private else "none"
        )


def test_the_published_recipe_composes() -> None:
    suite = load(FILE.with_name("published.yaml"))
    for cell in cells(suite, tasks=["squad_pairs"], clients=["published"]):
        first = next(grid(suite, cell))
        settings = composed(overrides(suite, first))
        assert (
            (first.lr, first.clip) == (settings.training.lr, settings.privacy.clip_norm) == (0.5, 2)
        )
        assert settings.privacy.epsilon == 6
        assert settings.privacy.accounting == cell.budget


@pytest.mark.parametrize("task", SUITE["tasks"])
def test_every_task_composes_with_every_model(task: str) -> None:
    for cell in cells(SUITE, tasks=[task], budgets=["1"], methods=["fedsvd"], heads=["frozen"]):
        assert settings_of(Trial(cell, "report", 1, 1, 0)).recorder.test


def test_what_could_only_fail_is_left_out() -> None:
    every = list(cells(SUITE))
    assert not [c for c in every if (c.method, c.head) == ("head_only", "frozen")]
    assert {c.task for c in every if c.clients == "natural"} == {
        name for name in SUITE["tasks"] if name not in ("newsgroups", "rotten_tomatoes")
    }
    assert {c.task for c in every} == set(SUITE["tasks"])


def test_searched_seeds_are_not_reported() -> None:
    for model in SUITE["models"].values():
        assert not set(model["seeds"]) & set(SUITE["search"]["seeds"])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match=r"methods: 'mine' is not in suite.yaml; .*fedsvd"):
        list(cells(SUITE, methods=["mine"]))


def made(
    file: Path, cell: Cell, stage: str, lr: float, clip: float, seed: int, **found: Any
) -> None:
    folder = file.parent / "run"
    folder.mkdir(exist_ok=True)
    found |= {"epsilon_target": 1.0} if found else {}
    (folder / "summary.json").write_text(json.dumps(found))
    curve = [{"round": n, "accuracy": a} for n, a in ((0, 0.5), (6, 0.55), (24, 0.6))]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, curve)))
    record(file, Trial(cell, stage, lr, clip, seed), folder, int(found == {}))


def test_the_best_of_the_search_is_reported_against_the_baseline(tmp_path: Path) -> None:
    file, mine = tmp_path / "r.jsonl", Cell(*(*CELL.name.split("/")[:5], "ffa"))
    for cell in (CELL, mine):
        made(file, cell, "search", 1, 0.1, 100, accuracy=0.6, test_accuracy=None)
        made(file, cell, "search", 2, 0.1, 100, accuracy=0.7, test_accuracy=None)
        made(file, cell, "search", 8, 0.1, 100)  # failed
        made(file, cell, "search", 4, 0.1, 100, accuracy=0.7, test_accuracy=None)
    (tmp_path / "run.log").write_text("error: it failed\n")
    made(file, mine, "search", 8, 1, 100)
    runs = read(file)
    assert best(runs, CELL) == (2, 0.1)  # of equal ones the smaller
    assert edges(runs, CELL, (2, 0.1)) == edges(runs, CELL, (4, 0.1)) == []
    assert edges(runs, CELL, (1, 0.1)) == edges(runs, CELL, (8, 0.1)) == ["lr"]
    beside = list(neighbours(SUITE, runs, CELL))
    assert [(t.stage, t.lr, t.clip, t.seed) for t in beside] == [
        ("search", 1, 0.1, 100), ("search", 4, 0.1, 100)
    ]  # fmt: skip
    assert not list(neighbours(SUITE, {}, CELL))
    assert runs[Trial(mine, "search", 8, 1, 100).key]["failed"] == "error: it failed"
    for seed in (0, 1, 2):
        gain = 0.1 * seed
        made(file, CELL, "report", 2, 0.1, seed, accuracy=0.6, test_accuracy=0.5, epsilon_max=0.9)
        made(file, mine, "report", 2, 0.1, seed, accuracy=0.6 + gain, test_accuracy=0.5 + gain,
             epsilon_max=0.99)  # fmt: skip
        made(file, mine, "report", 1, 0.1, seed, accuracy=0.1, test_accuracy=0.1, epsilon_max=0.99)
    made(file, mine, "report", 2, 0.1, 3)
    assert best(read(file, lr=1), CELL) == (1, 0.1)  # a study with one rate for all
    assert best(read(file, lr=3), CELL) is None
    one = list(table(SUITE, read(file, lr=1), [mine]))[-1].split(" | ")
    assert (one[1], one[8]) == ("1*", "0.1000 ± 0.0000")
    lines = list(table(SUITE, read(file), [CELL, mine]))
    assert lines[1] == "**squad_pairs, bert_tiny, natural, frozen, epsilon 1**"
    row = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert row[:6] == ["ffa", "2", "0.1", "3", "0.5000 ± 0.0000", "0.5500 ± 0.0000"]
    # Student's t of 0, 0.1, 0.2: 4.3027 * 0.1 / sqrt 3
    assert row[7] == "+0.1000 ± 0.2484"
    assert row[9:] == ["+0.1000 ± 0.2484", "0.990", "1"]


def test_a_quarter_is_of_the_rounds_that_were_made() -> None:
    assert _after({"0": 0.1, "18": 0.2, "36": 0.3, "72": 0.4}, 0.25) == 0.2
    assert _after({"0": 0.1, "6": 0.2, "12": 0.3, "24": 0.4}, 0.25) == 0.2


def test_refine_goes_on_until_the_best_rate_has_both_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, rounds = tmp_path / "r.jsonl", []
    for lr in (4, 16):
        made(file, CELL, "search", lr, 0.5, 100, accuracy=1 / lr, test_accuracy=None)

    def run_them(suite: Any, given: Any, wanted: list[Trial]) -> int:
        rounds.append([t.lr for t in wanted])
        for trial in wanted:  # 1 is the best; a half fails
            ran = {} if trial.lr == 0.5 else {"accuracy": 1 / trial.lr, "test_accuracy": None}
            made(file, trial.cell, trial.stage, trial.lr, trial.clip, trial.seed, **ran)
        return int(0.5 in rounds[-1])

    monkeypatch.setattr("experiments.suite.__main__.make", run_them)
    names = ["--tasks", CELL.task, "--models", CELL.model, "--clients", CELL.clients]
    names += ["--heads", CELL.head, "--budgets", CELL.budget, "--methods", CELL.method]
    (tmp_path / "run.log").write_text("error: it failed\n")
    assert main(["refine", *names, "--results", str(file)]) == 1
    assert rounds == [[2.0, 8.0], [1.0], [0.5]]
    assert best(read(file), CELL) == (1, 0.5)


def test_gains_are_points_over_the_baseline_on_the_same_seeds(tmp_path: Path) -> None:
    file, mine = tmp_path / "r.jsonl", Cell(*CELL.setting, "ffa")
    for cell in (CELL, mine):
        made(file, cell, "search", 2, 0.1, 100, accuracy=0.7, test_accuracy=None)
    for seed in range(4):  # that of seed 3 has no partner
        made(file, mine, "report", 2, 0.1, seed, accuracy=0.6, test_accuracy=0.5146 + 0.02 * seed)
    assert list(gains(SUITE, read(file), [CELL, mine]))[2:] == []
    for seed in range(3):
        made(file, CELL, "report", 2, 0.1, seed, accuracy=0.6, test_accuracy=0.5)
    # 1.46, 3.46, 5.46: their mean, and 4.3027 * 2 / sqrt 3; the last digit is rounded once
    assert list(
        gains(SUITE, read(file), list(cells(SUITE, methods=["fedsvd", "ffa", "rolora"])))
    ) == [
        "| less fedsvd | epsilon | fedsvd | ffa | rolora |",
        "|---|---|---|---|---|",
        "| squad_pairs, bert_tiny, natural, frozen | 1 | 50.0 ± 0.0 (3) | +3.5 ± 5.0 (3) | - |",
    ]


def test_the_cost_of_recorded_runs_is_that_of_two_at_a_time(tmp_path: Path) -> None:
    file, mine = tmp_path / "r.jsonl", Cell(*CELL.setting, "ffa")
    for seed, seconds in ((0, 60.0), (1, 120.0), (2, 600.0)):
        made(file, CELL, "report", 2, 0.1, seed, accuracy=0.6, seconds=seconds)
    made(file, mine, "search", 2, 0.1, 100)  # failed
    said = list(cost(SUITE, read(file), [CELL, mine, Cell(*CELL.setting, "rolora")]))
    where = "| squad_pairs, bert_tiny, natural, frozen | 1"
    assert said[2:] == [
        f"{where} | fedsvd | 3 | 0 | 120 | 6 |",
        f"{where} | ffa | 0 | 1 | - | 0 |",
        f"{where} | all | 3 | 1 | 120 | 6 |",  # (60 + 120 + 600) / 2 / 60 = 6.5, to even
    ]
    assert len(list(cost(SUITE, read(file), [mine]))) == 3


def test_methods_may_be_recorded_in_different_files(tmp_path: Path) -> None:
    first, second, mine = tmp_path / "1.jsonl", tmp_path / "2.jsonl", Cell(*CELL.setting, "ffa")
    for file, cell, accuracy in ((first, CELL, 0.5), (second, mine, 0.6)):
        made(file, cell, "search", 2, 0.1, 100, accuracy=0.7, test_accuracy=None)
        made(file, cell, "report", 2, 0.1, 0, accuracy=0.6, test_accuracy=accuracy)
    assert list(gains(SUITE, read(first), [CELL, mine]))[2:] == []
    (row,) = list(gains(SUITE, read(first, second), [CELL, mine]))[2:]
    assert row.endswith("| +10.0 (1) |")


def test_a_record_that_is_not_there_is_no_empty_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["gains", "--results", str(tmp_path / "public.json")])
    assert "--results: there is no file" in capsys.readouterr().err


def test_named_seeds_are_run_and_looked_at_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    made(old, CELL, "search", 2, 0.1, 100, accuracy=0.7, test_accuracy=None)
    made(old, CELL, "report", 2, 0.1, 0, accuracy=0.6, test_accuracy=0.5)
    asked: list[Trial] = []
    monkeypatch.setattr(
        suite_command, "make", lambda suite, given, wanted: asked.extend(wanted) or 0
    )
    files = ["--results", str(new), str(old)]  # the first is made by this
    names = ["--tasks", "squad_pairs", "--models", "bert_tiny", "--clients", "natural"]
    names += ["--heads", "frozen", "--budgets", "1", "--methods", "fedsvd"]
    assert main(["report", *files, *names, "--seeds", "20,21,20"]) == 0
    assert [(t.stage, t.lr, t.clip, t.seed) for t in asked] == [
        ("report", 2, 0.1, 20),
        ("report", 2, 0.1, 21),
    ]
    made(new, CELL, "report", 2, 0.1, 20, accuracy=0.6, test_accuracy=0.75)
    for seeds, test in (("20,21", "0.7500"), ("1", "0.5000"), ("0,20", "0.6250")):
        capsys.readouterr()
        assert main(["table", *files, *names, "--seeds", seeds]) == 0
        assert test in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "at least 1 seed is needed; the seed 0 alone is 0,"),
        ("five", "'five' is neither a number of seeds nor a list as 20,21,22"),
        ("20,-1", "'20,-1' is neither"),
        ("20,,21", "'20,,21' is neither"),
        ("", "'' is neither"),
        ("99,100", "100 is a seed of the search, which is never reported"),
        ("11", "11 is more than the 10 reported seeds of bert_tiny; name them: 20,21"),
    ],
)
def test_seeds_that_cannot_be_reported_are_refused(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--models", "bert_tiny", "--seeds", text])
    assert f"--seeds: {said}" in capsys.readouterr().err


def test_a_figure_has_a_row_for_each_setting_that_was_reported(tmp_path: Path) -> None:
    file, mine = tmp_path / "r.jsonl", Cell(*CELL.setting, "ffa")
    drawn = tmp_path / "figures" / "f.svg"
    made(file, CELL, "search", 2, 0.1, 100, accuracy=0.7, test_accuracy=None)
    assert draw(SUITE, read(file), [CELL], drawn) == 0  # a search alone is no result
    assert not drawn.exists()
    made(file, mine, "search", 2, 0.1, 100, accuracy=0.7, test_accuracy=None)
    for seed in (0, 1):
        made(file, CELL, "report", 2, 0.1, seed, accuracy=0.6, test_accuracy=0.5)
        made(file, mine, "report", 2, 0.1, seed, accuracy=0.6, test_accuracy=0.5 + seed / 10)
    made(file, mine, "report", 2, 0.1, 2)  # failed
    runs = read(file)
    assert paired(reported(runs, mine), reported(runs, CELL)) == pytest.approx([0, 0.1])
    assert draw(SUITE, runs, list(cells(SUITE)), drawn) == 1
    text = drawn.read_text()
    assert "squad_pairs, natural clients, epsilon 1" in text
    assert text.count(">ffa<") == 2  # in the legend and beside its difference
    assert text.count(">fedsvd<") == 1
    before = text
    draw(SUITE, runs, [CELL, mine], drawn)
    assert drawn.read_text() == before


def test_what_a_shared_rate_would_report(tmp_path: Path) -> None:
    file, mine = tmp_path / "r.jsonl", Cell(*CELL.name.split("/")[:5], "ffa")
    for clip, lr, accuracy in ((4, 1, 0.6), (0.5, 2, 0.7), (0.5, 8, 0.65)):
        made(file, CELL, "search", lr, clip, 100, accuracy=accuracy, test_accuracy=None)
    made(file, mine, "search", 2, 0.5, 100, accuracy=0.62, test_accuracy=None)
    made(file, mine, "report", 8, 0.5, 0, accuracy=0.9, test_accuracy=0.9)
    assert list(searched(SUITE, read(file), [CELL, mine])) == [
        "",
        "**squad_pairs, bert_tiny, natural, frozen, epsilon 1**",
        "",
        "| method | lr 2, clip 0.5 | lr 8, clip 0.5 | lr 1, clip 4 |",
        "|---|---|---|---|",
        "| fedsvd | 0.7000 | 0.6500 | 0.6000 |",
        "| ffa | 0.6200 | - | - |",
    ]


def test_an_epsilon_above_the_target_is_marked(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    made(file, CELL, "search", 2, 0.1, 100, accuracy=0.6, test_accuracy=None)
    for seed, spent in ((0, 0.9), (1, 1.4)):
        made(file, CELL, "report", 2, 0.1, seed, accuracy=0.6, test_accuracy=0.5,
             epsilon_max=spent)  # fmt: skip
        cells_of = list(table(SUITE, read(file), [CELL]))[-1].split("|")
        assert cells_of[-3].strip() == ("0.900", "1.400 (above)")[seed]


def test_adamw_has_a_grid_of_its_own() -> None:
    adamw = Cell(*CELL.name.split("/")[:5], "fedsvd_adamw")
    assert {t.lr for t in grid(SUITE, adamw)} == set(SUITE["search"]["lr_adamw"])
    steps = {t.lr * t.clip for t in grid(SUITE, CELL)}
    assert steps == set(map(float, SUITE["search"]["step"]))


def test_a_method_that_names_its_rate_has_no_other(tmp_path: Path) -> None:
    cell, file = Cell(*CELL.name.split("/")[:5], "public_only"), tmp_path / "r.jsonl"
    (trial,) = grid(SUITE, cell)
    assert trial.lr == settings_of(trial).training.lr == 1e-30
    made(file, cell, "search", trial.lr, trial.clip, 100, accuracy=0.6)
    assert not list(neighbours(SUITE, read(file), cell))
    (row,) = [line for line in table(SUITE, read(file), [cell]) if "public_only" in line]
    assert "| 1e-30 |" in row  # and no star, which says that other rates were tried


def test_a_rate_at_an_end_of_the_search_has_a_star(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    for lr, accuracy in ((1.0, 0.5), (2.0, 0.6)):
        made(file, CELL, "search", lr, 0.5, 100, accuracy=accuracy)
    (row,) = [line for line in table(SUITE, read(file), [CELL]) if CELL.method in line]
    assert "| 2* |" in row


def test_tables_of_the_pages_are_what_the_commands_print() -> None:
    assert pages.run(pages.PAGES, check=True) == 0


def test_a_figure_that_was_typed_into_a_page_is_seen(tmp_path: Path) -> None:
    text = (pages.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    page, wrong = tmp_path / "page.md", text.replace("| +3.6 ± 1.3 (5) |", "| +3.7 ± 1.3 (5) |")
    assert wrong != text
    page.write_text(wrong, encoding="utf-8")
    assert pages.run([page], check=True) == 1
    assert page.read_text(encoding="utf-8") == wrong
    assert pages.run([page], check=False) == 0
    assert page.read_text(encoding="utf-8") == text


def test_what_is_no_complete_command_stays_as_it_is() -> None:
    for command in ("table P", "table ... --lr 2", "search --tasks vader", "--help"):
        page = f"    python -m experiments.suite {command}\n\n| a |\n|---|\n| 1 |\n"
        assert pages.filled(page) == (page, [])


def test_an_interval_in_the_text_is_in_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, show = tmp_path / "page.md", "python -m experiments.table show"
    record = pages.ROOT / "experiments" / "defaults" / "variants.jsonl"
    page.write_text(f"It loses -0.0174 ± 0.0131.\n\n    {show} {record} all\n\n| a |\n")
    assert pages.run([page], check=False) == 0
    assert "| upper_third | 0 1 2 3 4 |" in page.read_text(encoding="utf-8")
    for wrong in ("It loses 0.0174 ± 0.0132.", "| typed |\n|---|\n| 0.0174 ± 0.0132 |"):
        page.write_text(wrong)
        assert pages.run([page], check=True) == 1
        assert "page.md: no command of docs/ prints 0.0174 ± 0.0132" in capsys.readouterr().out
