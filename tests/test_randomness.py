import hashlib
from itertools import product

import numpy as np
import pytest
import torch

from fedsvd.randomness import (
    Purpose,
    attempt_key,
    numpy_stream,
    scoped_dropout,
    stream_key,
    torch_stream,
    uniforms,
    words,
)

U64 = np.uint64
# The examples that were recorded: two clients of one run, and two seeds, with one noise.
RECORDED = [((0, 758, 35), (0, 740, 30)), ((5, 1, 0), (5 + 2**33, 1, 0))]


def philox(keys):
    """The first outputs of Philox4x64-10 at counter 1 (Salmon et al., SC 2011), written out."""
    low = U64(0xFFFFFFFF)

    def mulhilo(a, x):
        a0, a1, x0, x1 = U64(a) & low, U64(a) >> U64(32), x & low, x >> U64(32)
        middle = a1 * x0 + (a0 * x0 >> U64(32))
        high = a1 * x1 + (middle >> U64(32)) + (a0 * x1 + (middle & low) >> U64(32))
        return high, U64(a) * x

    k0 = np.array([k & (2**64 - 1) for k in keys], dtype=U64)
    k1 = np.array([k >> 64 for k in keys], dtype=U64)
    x = [np.full(len(keys), v, dtype=U64) for v in (1, 0, 0, 0)]
    for _ in range(10):
        high0, low0 = mulhilo(0xD2E7470EE14C6C93, x[0])
        high1, low1 = mulhilo(0xCA5A826395121157, x[2])
        x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
        k0, k1 = k0 + U64(0x9E3779B97F4A7C15), k1 + U64(0xBB67AE8584CAA73B)
    return x[0]


def test_no_two_of_400_000_streams_share_a_key_or_a_first_output():
    seeds = [*range(6), -1, -5, 2**32, 5 + 2**33, 2**64, 5 + 2**64, -(2**64), 2**200, -(2**200)]
    identities = [
        (seed, purpose, round, client, *attempt_key(attempt))
        for seed, purpose, round, client, attempt in product(
            seeds, Purpose, [*range(1, 23), 740, 758], [*range(31), 35], range(3)
        )
    ]
    assert len(identities) > 400_000
    keys = [stream_key(*identity) for identity in identities]
    assert len(set(keys)) == len(keys)
    assert max(keys) > 2**127
    first = philox(keys)
    assert len(np.unique(first)) == len(keys)  # by chance two are equal with 5e-9
    for i in range(0, len(keys), 9973):  # what the streams give is what was written out
        assert words(1, numpy_stream(*identities[i]))[0] == first[i]


def test_the_check_above_sees_the_collisions_of_seeds_that_torch_cuts_to_32_bits():
    def cut(seed, round, client):
        parts = [str(seed), "noise", f"int:{round}", f"int:{client}"]
        digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
        return (int.from_bytes(digest[:8], "big") >> 1) & 0xFFFFFFFF

    assert cut(*RECORDED[0][0]) == cut(*RECORDED[0][1])
    same = [torch.rand(4, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**33)]
    assert torch.equal(*same)


@pytest.mark.parametrize(("one", "other"), RECORDED)
def test_the_recorded_examples_do_not_collide(one, other):
    (s, *keys), (t, *more) = one, other
    a, b = numpy_stream(s, Purpose.NOISE, *keys), numpy_stream(t, Purpose.NOISE, *more)
    assert not np.intersect1d(words(1000, a), words(1000, b)).size
    a, b = torch_stream(s, Purpose.NOISE, *keys), torch_stream(t, Purpose.NOISE, *more)
    x, y = (torch.rand(1000, generator=g, dtype=torch.float64).numpy() for g in (a, b))
    assert not np.intersect1d(x, y).size


def test_streams_of_torch_carry_the_whole_key():
    streams = [torch_stream(s, Purpose.ADAPTER, k) for s in (0, 2**32, -1) for k in range(4000)]
    states = {g.get_state().numpy().tobytes() for g in streams}
    first = {float(torch.rand(1, generator=g, dtype=torch.float64)) for g in streams}
    assert len(states) == len(first) == 12_000


def test_a_stream_of_torch_is_the_mersenne_twister_on_words_of_the_stream():
    """NumPy's own Mersenne Twister gives the same numbers from the same state."""
    state = np.random.Philox(key=stream_key(3, Purpose.HEAD, "x")).random_raw(312).view(np.uint32)
    twister = np.random.MT19937()
    twister.state = {**twister.state, "state": {"key": state, "pos": 624}}
    drawn = torch.randint(2**24, (2000,), generator=torch_stream(3, Purpose.HEAD, "x"))
    assert drawn.tolist() == (twister.random_raw(2000) % U64(2**24)).tolist()
    values = torch.randn(100_001, generator=torch_stream(3, Purpose.HEAD)).double()
    assert abs(float(values.mean())) < 5 / 316
    assert abs(float(values.var()) - 1) < 5 * (2 / 100_001) ** 0.5


def test_streams_differ_in_every_part_of_their_identity():
    keys = [
        (), (1,), ("1",), (1, 2), (2, 1), (12,), ("1", 2), ("1,2",), (1, "2"), ('1","2',),
        ("1", "2"), ("\x1f1",), ("a\x1fstr:b",), ("a", "b"), ("",), ("", ""), (16,), (10,), ("10",),
        (-1,), (True, 2, 3), ("é",), ("\ud800",),
    ]  # fmt: skip
    found = {stream_key(s, p, *k) for s in (0, 1) for p in Purpose for k in keys}
    assert len(found) == 2 * len(Purpose) * len(keys)


@pytest.mark.parametrize(
    "seed",
    [0, -1, 2**31, 2**63 - 1, -(2**63), 2**64, 10**30, -(2**20_000)],
    ids=lambda s: f"{s:x}"[:20],
)
def test_any_whole_number_is_a_seed(seed):
    others = {seed - 1, seed, seed + 1, -seed, seed + 2**32, seed + 2**64, seed + 2**128}
    assert len({stream_key(s, Purpose.NOISE) for s in others}) == len(others)
    assert 0 <= stream_key(seed, Purpose.NOISE) < 2**128
    assert words(1, numpy_stream(seed, Purpose.NOISE)).dtype == U64
    assert torch_stream(seed, Purpose.NOISE).initial_seed() >= 0


def test_whole_numbers_are_one_key_whatever_their_type_and_nothing_else_is():
    assert stream_key(np.int64(3), Purpose.NOISE, np.uint8(4)) == stream_key(3, Purpose.NOISE, 4)
    assert stream_key(0, Purpose.NOISE, 4) != stream_key(0, Purpose.NOISE, "4")
    for bad in (1.0, None, b"1"):
        with pytest.raises(TypeError):
            stream_key(0, Purpose.NOISE, bad)
        with pytest.raises(TypeError):
            stream_key(bad, Purpose.NOISE)


def test_a_stream_is_the_same_every_time():
    a = torch.rand(5, generator=torch_stream(3, Purpose.NOISE, 1, 2))
    b = torch.rand(5, generator=torch_stream(3, Purpose.NOISE, 1, 2))
    assert torch.equal(a, b)
    assert numpy_stream(3, Purpose.SPLIT).random() == numpy_stream(3, Purpose.SPLIT).random()
    # Recorded, so that a change of the streams is seen: it needs another `randomness.SCHEME`.
    assert f"{stream_key(3, Purpose.NOISE, 1, 2):032x}" == "793a0a22c561badf03141c2ff60e94fb"
    assert words(2, numpy_stream(3, Purpose.NOISE, 1, 2)).tolist() == [
        3793227971656101774,
        1731926173665828723,
    ]


@pytest.mark.parametrize("secret", [False, True])
def test_words_have_no_bit_that_is_set_more_often(secret):
    drawn = words(200_000, None if secret else numpy_stream(0, Purpose.NOISE))
    bits = np.unpackbits(drawn.view(np.uint8)).reshape(-1, 64)
    assert float(abs(bits.mean(axis=0) - 0.5).max()) < 6 * 0.5 / 200_000**0.5
    assert len(np.unique(drawn)) == len(drawn)
    assert drawn.flags.writeable


def test_words_of_the_system_are_drawn_anew_in_every_call():
    assert not np.intersect1d(words(1000, None), words(1000, None)).size


def test_a_generator_of_32_bits_is_refused_for_noise_and_batches():
    with pytest.raises(TypeError, match=r"numpy\.random\.Generator or None, not Generator"):
        words(3, torch.Generator().manual_seed(0))


def test_uniforms_reach_both_ends():
    assert uniforms(3, None).dtype == np.float64

    class Ends(np.random.Generator):
        def integers(self, *_, **__):
            return np.array([0, 2**64 - 1, 2**11 - 1, 2**11], dtype=U64)

    found = uniforms(4, Ends(np.random.Philox(0)))
    assert found.tolist() == [0.0, 1 - 2.0**-53, 0.0, 2.0**-53]


def test_dropout_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    with scoped_dropout(0, 1, 2, torch.device("cpu")):
        first = torch.rand(3)
    with scoped_dropout(0, 1, 2, torch.device("cpu")):
        assert torch.equal(first, torch.rand(3))
    with scoped_dropout(2**32, 1, 2, torch.device("cpu")):
        assert not torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.random.get_rng_state())
