"""What strategies ask of local steps, against SciPy and autograd."""

import numpy as np
import scipy.ndimage
import torch

from fedsvd.client.filters import binomial, projected, smooth
from fedsvd.client.rule import LocalRule, apply_rule, rule_in


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


def test_the_papers_filter_against_scipy_and_by_hand():
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # SciPy's "reflect" repeats the last entry: d c b a | a b c d | d c b a.
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    expected = scipy.ndimage.correlate1d(x.numpy(), kernel, axis=1, mode="reflect")
    np.testing.assert_allclose(binomial(x, 1).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(binomial(x.mT, 0).numpy(), expected.T, atol=1e-12)
    # Of (16, 0, 0, 0): 6 and the mirrored 4 at the first entry, then 4 + 1, then 1.
    spike = torch.tensor([[16.0, 0.0, 0.0, 0.0]])
    assert binomial(spike, 1).tolist() == [[10.0, 5.0, 1.0, 0.0]]
    assert binomial(torch.full((2, 2), 3.0), 0).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_projected_step_is_the_weights_gradient_on_what_the_other_spans():
    g = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    A, B, G, s = draw(2, 7), draw(6, 2), draw(6, 7), 1.7
    dB, dA = projected(s * G @ A.mT, A, "B", s), projected(s * B.mT @ G, B, "A", s)
    # Least squares: min ||s dB A - G|| and min ||s B dA - G||.
    best_B = torch.linalg.lstsq(s * A.mT, G.mT).solution.mT
    best_A = torch.linalg.lstsq(s * B, G).solution
    torch.testing.assert_close(dB, best_B)
    torch.testing.assert_close(dA, best_A)
    assert not projected(s * 0 * A, 0 * B, "A", s).any()  # B = 0: nothing to project on


def test_the_rule_filters_along_the_model_and_projects_along_the_rank():
    g = torch.Generator().manual_seed(4)
    values = {"q.A": torch.randn(2, 7, generator=g), "q.B": torch.randn(6, 2, generator=g)}
    named = {n: torch.nn.Parameter(v) for n, v in values.items()}
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=g)
    A, B = (named[n].grad.clone() for n in ("q.A", "q.B"))
    apply_rule(LocalRule(binomial=True), named)
    torch.testing.assert_close(named["q.A"].grad, binomial(A, 1))
    torch.testing.assert_close(named["q.B"].grad, binomial(B, 0))
    named["q.A"].grad, named["q.B"].grad = None, B.clone()  # A stands still
    apply_rule(LocalRule(binomial=True, projected=True), named, {}, named, {"q": 0.5})
    expected = binomial(projected(B, values["q.A"], "B", 0.5), 0)
    torch.testing.assert_close(named["q.B"].grad, expected)


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
    rule = LocalRule(alternates=True, smoothing=0.5, penalty=0.1, tail=0.9, steps="tangent")
    assert rule_in({"server-round": 3, **rule.to_config()}) == rule
    assert rule_in({}) == LocalRule()
    assert [rule.kinds(step, ("A", "B")) for step in (1, 2)] == [("B",), ("A",)]
    assert rule.kinds(2, ("B",)) == ("B",)
