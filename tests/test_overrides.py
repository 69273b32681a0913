"""Values of Python come out of Hydra's parser as they went in."""

from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.errors import InputError
from fedsvd.overrides import as_overrides, choices, override, quoted, unquoted

PARSER = OverridesParser.create()
texts = st.text(alphabet="ab \\'\"{}[](),:=$é\n\t/-~1", max_size=8)
names = st.text(alphabet="ab \\'{}[](),:=/-1", min_size=1, max_size=5).filter(
    lambda name: name == name.strip() and "'" not in name
)
single = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts
)  # fmt: skip
values = st.recursive(
    single,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=6,
)


@given(values)
def test_a_value_comes_back(value):
    found = PARSER.parse_override(override("data.filter", value))
    assert found.key_or_group == "data.filter"
    told = found.value()
    assert _keys_as_text(told) == _keys_as_text(value)
    assert type(told) is type(value)


@given(texts)
def test_quotes_come_off(text):
    assert unquoted(quoted(text)) == text


@given(st.lists(single, min_size=2, max_size=4))
def test_the_values_of_a_sweep_come_back(each):
    found = PARSER.parse_override(choices("seed", each))
    assert found.is_sweep_override()
    assert [getattr(one, "text", one) for one in found.value().list] == each


def _keys_as_text(value):
    if isinstance(value, dict):
        return {str(k): _keys_as_text(v) for k, v in value.items()}
    return [_keys_as_text(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("rounds", np.int64(2), "rounds=2"),
        ("training.lr", np.float32(0.5), "training.lr=0.5"),
        ("clients.ranks", (4, 8), "clients.ranks=[4,8]"),
        ("clients.ranks", np.array([4, 8]), "clients.ranks=[4,8]"),
        ("data.path", Path("a b/it's"), "data.path='a b/it\\'s'"),
        ("experiment", "quickstart", "+experiment='quickstart'"),
        ("hydra/launcher", "ray", "hydra/launcher='ray'"),
        ("privacy.delta", 1e-5, "privacy.delta=1e-05"),
    ],
)
def test_texts(key, value, text):
    assert override(key, value) == text


@pytest.mark.parametrize(
    ("texts", "values", "message"),
    [
        (["-m"], {}, "overrides: '-m' is not allowed"),
        (["quickstart"], {}, "it must be a text KEY=VALUE"),
        ([3], {}, "overrides: 3 is not allowed"),
        ([], {"a b": 1}, "overrides: 'a b' is not allowed"),
        ([], {"seed": object()}, "seed: a object cannot be given; it must be None"),
        ([], {"data.filter": {"": 1}}, "data.filter: a dictionary's key: '' is not allowed"),
    ],
)
def test_what_cannot_be_given(texts, values, message):
    with pytest.raises(InputError) as caught:
        as_overrides(texts, values)
    assert message in str(caught.value)


@pytest.mark.parametrize("values", [[], 3, {"a": 1}, None])
def test_a_grid_holds_lists(values):
    with pytest.raises(InputError, match="grid: seed"):
        choices("seed", values)


def test_a_text_in_a_grid_is_hydras_own():
    assert choices("training.lr", "interval(0.1, 1)") == "training.lr=interval(0.1, 1)"
    assert choices("seed", range(3)) == "seed=0,1,2"
