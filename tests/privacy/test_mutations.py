"""Planted bugs: each patches the real code, and a named check of `proofs` must notice it."""

import math

import numpy as np
import pytest
import torch

from fedsvd.client import training
from fedsvd.privacy import dpsgd, plan
from fedsvd.privacy.dpsgd import ClippingOptimizer, StepReport
from tests import planted
from tests.privacy.proofs import CHECKS


def noise_scaled_by_the_batch_once_too_often(patch):
    real = dpsgd.noised
    patch.setattr(dpsgd, "noised", lambda totals, std, g: real(totals, std / 16, g))


def divided_by_the_batch_that_was_drawn(patch):
    def scale(self):
        for p in self.params:
            p.grad /= max(len(self.norms), 1)

    patch.setattr(ClippingOptimizer, "scale_grad", scale)


def the_same_noise_in_every_step(patch):
    real = dpsgd.noised

    def again(totals, std, generator):
        return real(totals, std, np.random.default_rng(0))

    patch.setattr(dpsgd, "noised", again)


def an_empty_batch_skips_the_step(patch):
    real = training.dp_step

    def step(optimizer, groups, losses):
        if not groups:
            return StepReport(0, math.nan, torch.zeros(0))
        return real(optimizer, groups, losses)

    patch.setattr(training, "dp_step", step)


def a_regulariser_of_the_data_after_clipping(patch):
    real = dpsgd.clipped_sums

    def sums(grads, clip_norm, kind):
        found, norms = real(grads, clip_norm, kind)
        return [s + 0.01 * g.sum(dim=0) for s, g in zip(found, grads, strict=True)], norms

    patch.setattr(dpsgd, "clipped_sums", sums)


def weight_decay_once_for_every_example(patch):
    real = ClippingOptimizer.clip_and_accumulate

    def accumulate(self):
        real(self)
        for p in self.params:
            p.summed_grad = p.summed_grad + len(self.norms) * p.detach()

    patch.setattr(ClippingOptimizer, "clip_and_accumulate", accumulate)


def noise_for_the_mean_participation(patch):
    real = plan.noise_multipliers

    def fewer(target, delta, rates, steps, accountant):
        # 12 clients, 3 a round: a client takes part in 7.5 of 30 rounds in the mean.
        return real(target, delta, rates, math.ceil(30 * 3 / 12) * 2, accountant)

    patch.setattr(plan, "noise_multipliers", fewer)


BUGS = [
    (planted.no_noise, "check_noise"),
    (noise_scaled_by_the_batch_once_too_often, "check_noise"),
    (divided_by_the_batch_that_was_drawn, "check_noise"),
    (the_same_noise_in_every_step, "check_noise"),
    (planted.noise_shared_by_clients, "check_noise"),
    (planted.noise_reused_over_rounds, "check_noise"),
    (an_empty_batch_skips_the_step, "check_noise"),
    (planted.clipping_after_the_sum, "check_neighbours"),
    (planted.each_tensor_clipped_to_the_whole_clip, "check_neighbours"),
    (a_regulariser_of_the_data_after_clipping, "check_neighbours"),
    (weight_decay_once_for_every_example, "check_neighbours"),
    (planted.batches_of_a_fixed_size, "check_poisson"),
    (planted.twice_the_rate, "check_poisson"),
    (planted.ledger_reset, "check_ledger"),
    (planted.one_step_a_round_charged, "check_ledger"),
    (noise_for_the_mean_participation, "check_target"),
    (planted.no_noise_at_the_server, "check_server_noise"),
]


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=[f"{b.__name__}-{c}" for b, c in BUGS])
def test_a_planted_bug_is_noticed(bug, check, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):  # the check's own sentence
        CHECKS[check]()
