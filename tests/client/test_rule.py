"""What strategies ask of local steps, against SciPy and autograd."""

import numpy as np
import scipy.ndimage
import torch

from fedsvd.client.rule import LocalRule, apply_rule, rule_in, smooth


def test_smoothing_is_scipys_gaussian_filter():
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for std in (0.7, 1.0, 2.0):
        radius = max(1, int(np.ceil(3 * std)))
        expected = scipy.ndimage.gaussian_filter1d(
            x.numpy(), std, axis=1, mode="nearest", radius=radius
        )
        np.testing.assert_allclose(smooth(x, std, 1).numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(smooth(x.mT, std, 0).numpy(), expected.T, atol=1e-12)
    constant = torch.full((2, 9), 3.0)
    torch.testing.assert_close(smooth(constant, 1.0, 1), constant)


def test_penalty_is_the_gradient_of_the_tails_size():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    named = {n: torch.nn.Parameter(draw(*s)) for n, s in (("q.A", (5, 7)), ("q.B", (6, 5)))}
    data = {n: draw(*p.shape) for n, p in named.items()}
    for n, p in named.items():
        p.grad = data[n].clone()
    apply_rule(LocalRule(penalty=0.3, tail=0.7), named)  # floor(0.7 * 5) = 3
    size = 0.3 * named["q.B"][:, 3:].norm() * named["q.A"][3:].norm()
    for (n, p), g in zip(named.items(), torch.autograd.grad(size, named.values()), strict=True):
        torch.testing.assert_close(p.grad, data[n] + g)


def test_a_rule_travels_in_a_message():
    rule = LocalRule(alternates=True, smoothing=0.5, penalty=0.1, tail=0.9)
    assert rule_in({"server-round": 3, **rule.to_config()}) == rule
    assert rule_in({}) == LocalRule()
    assert [rule.kinds(step, ("A", "B")) for step in (1, 2)] == [("B",), ("A",)]
    assert rule.kinds(2, ("B",)) == ("B",)
