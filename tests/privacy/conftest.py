"""A small model and its data for the checks of `proofs`, made once."""

import pytest

from tests.privacy import proofs
from tests.tiny import make_inputs


@pytest.fixture(scope="session", autouse=True)
def small_proofs(tmp_path_factory):
    proofs.OVERRIDES[:] = [*make_inputs(tmp_path_factory.mktemp("proofs"), width=64), *proofs.MORE]
