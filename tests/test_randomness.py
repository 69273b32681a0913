import torch

from fedsvd.randomness import Purpose, numpy_stream, scoped_dropout, stream_seed, torch_stream


def test_streams_differ_in_every_part_of_their_identity():
    seeds = {
        stream_seed(s, p, *keys)
        for s in (0, 1)
        for p in Purpose
        for keys in [(), (1,), ("1",), (1, 2), (2, 1), (12,), ("1", 2)]
    }
    assert len(seeds) == 2 * len(Purpose) * 7


def test_a_stream_is_the_same_every_time():
    a = torch.rand(5, generator=torch_stream(3, Purpose.NOISE, 1, 2))
    b = torch.rand(5, generator=torch_stream(3, Purpose.NOISE, 1, 2))
    assert torch.equal(a, b)
    assert numpy_stream(3, Purpose.SPLIT).random() == numpy_stream(3, Purpose.SPLIT).random()


def test_dropout_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    with scoped_dropout(0, 1, 2, torch.device("cpu")):
        first = torch.rand(3)
    with scoped_dropout(0, 1, 2, torch.device("cpu")):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.random.get_rng_state())
