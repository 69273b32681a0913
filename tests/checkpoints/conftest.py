"""A tiny model and task, and straight runs to compare with, made once."""

import pytest

from tests.tiny import make_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))
