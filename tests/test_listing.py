"""The listing: what is recorded of pairs is what the classes say, and other files are looked at."""

import logging
import shutil

from fedsvd import listing
from fedsvd.composing import config_folder


def test_what_is_recorded_is_what_the_classes_say():
    assert listing.RECORDED.read_text(encoding="utf-8") == listing.record(config_folder()), (
        "run python scripts/pairs.py"
    )


def test_a_strategy_of_ones_own_is_listed_with_its_pairs(tmp_path):
    folder = tmp_path / "configs"
    shutil.copytree(config_folder(), folder)
    (folder / "strategy" / "mine.yaml").write_text(
        "# Mine: as FedAvg.\n_target_: fedsvd.strategies.FedAvg\n"
    )
    logging.getLogger("flwr").setLevel(logging.INFO)
    told = listing.listing(folder)
    assert logging.getLogger("flwr").level == logging.ERROR  # no advice between the lines
    assert "mine              Mine: as FedAvg." in told
    pairs = listing.valid(folder)
    assert pairs.pop("mine") == pairs["fedavg"]
    assert pairs == listing.valid(config_folder())


def test_the_digest_is_of_values_and_not_of_comments(tmp_path):
    folder = tmp_path / "configs"
    shutil.copytree(config_folder(), folder)
    path = folder / "strategy" / "fedsvd.yaml"
    text = path.read_text()
    path.write_text("# Another comment.\n" + text)
    assert listing.digest(folder) == listing.digest(config_folder())
    path.write_text(text.replace("period: 1", "period: 2"))
    assert listing.digest(folder) != listing.digest(config_folder())
