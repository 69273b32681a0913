"""FedSVD and FFA with orthonormal A are one method under SGD, clipping and linear averaging.

Replacing (B, A) by (B Q^T, Q A) with orthogonal Q changes neither a step on B A nor a clipping
norm; the refactorisation is such a Q. With noise the two agree when the noise is rotated along.
"""

import pytest
import torch

from fedsvd.lowrank import AdapterState, LowRank, relative_distance
from fedsvd.privacy.dpsgd import attach_hooks, dp_step, make_optimizer
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies import FFA, FedSVD, Update
from tests.conftest import tiny_batch, tiny_classifier

ROUNDS, CLIENTS, STEPS, LR, CLIP = 10, 3, 2, 2.0, 0.05


def local(model, state, client, round, noise):
    """Two clipped SGD steps on a client's batch, with the given noise on B."""
    model.write(state)
    inputs, labels = tiny_batch(12, seed=100 * client + round)
    hooks = attach_hooks(model)
    optimizer = make_optimizer(
        torch.optim.SGD(model.trainable().values(), lr=LR), noise_multiplier=0.0, clip_norm=CLIP,
        expected_batch=12.0, generator=None,
    )  # fmt: skip
    for step in range(STEPS):
        dp_step(
            optimizer, [None],
            lambda _: torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none"),
        )  # fmt: skip
        with torch.no_grad():
            for name, p in model.trainable().items():
                p.add_(noise(name, client, round, step))
    hooks.cleanup()
    return model.read(state)


def draw(name, client, round, step, shape):
    generator = torch_stream(0, Purpose.NOISE, name, client, round, step)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.0, 0.05])
@pytest.mark.parametrize("head", [False, True])
def test_fedsvd_is_ffa_with_orthonormal_rows(sigma, head):
    model = tiny_classifier("B", head_trains=head, init="orthonormal")
    start = AdapterState.from_tensors({n: t.double() for n, t in model.initial.tensors().items()})
    # Orthonormal to float64, not only to the float32 in which factors start.
    factors = {
        k: LowRank(torch.linalg.qr(p.A.mT)[0].mT.contiguous(), p.B)
        for k, p in start.factors.items()
    }
    start = AdapterState(factors, start.extra)
    states = {"svd": start, "ffa": start}
    rules = {"svd": FedSVD(), "ffa": FFA()}
    for round in range(1, ROUNDS + 1):
        for key in states:
            state = AdapterState(states[key].factors, states[key].extra, round)

            def noise(name, client, r, step, state=state):
                shape = state.tensors()[name].shape
                z = sigma * draw(name, client, r, step, shape)
                if not name.endswith(".B"):
                    return z
                # The noise of the fixed basis, seen from this one: z -> z Q^T, A = Q A_ffa.
                layer = name[:-2]
                return z @ states["ffa"].factors[layer].A @ state.factors[layer].A.mT

            updates = [
                Update(k, (k + 1) / 6, local(model, state, k, round, noise)) for k in range(CLIENTS)
            ]
            states[key] = rules[key].aggregate(state, updates)
        for layer, pair in states["svd"].factors.items():
            assert float(relative_distance(pair, states["ffa"].factors[layer])) < 1e-8
            A0, A = start.factors[layer].A, pair.A
            assert torch.allclose(A0.mT @ (A0 @ A.mT), A.mT, atol=1e-9)  # the row space stays
    assert any(
        not torch.allclose(p.A, start.factors[k].A) for k, p in states["svd"].factors.items()
    )
