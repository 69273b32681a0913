"""The root of a factor's Gram matrix."""

import torch

from fedsvd.lowrank.distance import root_of_gram


def test_norms_of_products_are_those_with_the_root() -> None:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(3, 9, generator=g)
    A[2] = A[0] + A[1]  # a Gram matrix without full rank
    C = root_of_gram(A)
    assert C.dtype == torch.float64
    torch.testing.assert_close(C @ C.mT, A.double() @ A.double().mT)
    B = torch.randn(7, 3, generator=g).double()
    torch.testing.assert_close((B @ C).norm(dim=1), (B @ A.double()).norm(dim=1))
