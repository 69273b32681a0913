"""Planted bugs: each patches the real code, and a named check of `proofs` must notice it."""

import math

import numpy as np
import pytest
import torch

from fedsvd.client import training
from fedsvd.privacy import client_level, dpsgd, plan
from fedsvd.privacy.dpsgd import ClippingOptimizer, StepReport
from fedsvd.privacy.ledger import Ledger
from tests.privacy.proofs import CHECKS


def noise_forgotten(patch):
    patch.setattr(dpsgd, "noised", lambda totals, std, generator: totals)


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


def the_same_seed_for_two_clients(patch):
    real = training.numpy_stream

    def stream(seed, purpose, round, client, *attempt):
        return real(seed, purpose, round, *attempt)

    patch.setattr(training, "numpy_stream", stream)


def the_same_seed_in_every_round(patch):
    real = training.numpy_stream

    def stream(seed, purpose, round, client, *attempt):
        return real(seed, purpose, client, *attempt)

    patch.setattr(training, "numpy_stream", stream)


def an_empty_batch_skips_the_step(patch):
    real = training.dp_step

    def step(optimizer, groups, losses):
        if not groups:
            return StepReport(0, math.nan, torch.zeros(0))
        return real(optimizer, groups, losses)

    patch.setattr(training, "dp_step", step)


def clipping_after_summing(patch):
    def sums(grads, clip_norm, kind):
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
        totals = [g.sum(dim=0) for g in grads]
        whole = torch.stack([t.norm() for t in totals]).norm()
        return [t * min(1.0, clip_norm / float(whole)) for t in totals], norms

    patch.setattr(dpsgd, "clipped_sums", sums)


def clipping_each_tensor_to_the_whole_clip(patch):
    def sums(grads, clip_norm, kind):
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads])
        factors = (clip_norm / norms).clamp(max=1.0)
        pairs = zip(factors, grads, strict=True)
        return [torch.einsum("n,n...->...", w, g) for w, g in pairs], norms.norm(dim=0)

    patch.setattr(dpsgd, "clipped_sums", sums)


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


def batches_from_a_shuffle(patch):
    def shuffled(examples, rate, generator):
        return generator.permutation(examples)[: round(rate * examples)].tolist()

    patch.setattr(training, "poisson_sample", shuffled)


def batches_at_twice_the_rate(patch):
    real = training.poisson_sample
    patch.setattr(training, "poisson_sample", lambda n, q, g: real(n, min(1, 2 * q), g))


def the_ledger_is_reset_each_round(patch):
    real = Ledger.record_round

    def record(self, round, asked, taken):
        self.events.clear()
        real(self, round, asked, taken)

    patch.setattr(Ledger, "record_round", record)


def one_step_a_round_is_accounted(patch):
    real = Ledger.record_round

    def record(self, round, asked, taken):
        real(self, round, asked, dict.fromkeys(asked, 1))

    patch.setattr(Ledger, "record_round", record)


def noise_for_the_mean_participation(patch):
    real = plan.noise_multipliers

    def fewer(target, delta, rates, steps, accountant):
        # 12 clients, 3 a round: a client takes part in 7.5 of 30 rounds in the mean.
        return real(target, delta, rates, math.ceil(30 * 3 / 12) * 2, accountant)

    patch.setattr(plan, "noise_multipliers", fewer)


def the_server_forgets_its_noise(patch):
    patch.setattr(client_level, "noised", lambda totals, std, generator: totals)


BUGS = [
    (noise_forgotten, "check_noise"),
    (noise_scaled_by_the_batch_once_too_often, "check_noise"),
    (divided_by_the_batch_that_was_drawn, "check_noise"),
    (the_same_noise_in_every_step, "check_noise"),
    (the_same_seed_for_two_clients, "check_noise"),
    (the_same_seed_in_every_round, "check_noise"),
    (an_empty_batch_skips_the_step, "check_noise"),
    (clipping_after_summing, "check_neighbours"),
    (clipping_each_tensor_to_the_whole_clip, "check_neighbours"),
    (a_regulariser_of_the_data_after_clipping, "check_neighbours"),
    (weight_decay_once_for_every_example, "check_neighbours"),
    (batches_from_a_shuffle, "check_poisson"),
    (batches_at_twice_the_rate, "check_poisson"),
    (the_ledger_is_reset_each_round, "check_ledger"),
    (one_step_a_round_is_accounted, "check_ledger"),
    (noise_for_the_mean_participation, "check_target"),
    (the_server_forgets_its_noise, "check_server_noise"),
]


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=[f"{b.__name__}-{c}" for b, c in BUGS])
def test_a_planted_bug_is_noticed(bug, check, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):  # the check's own sentence
        CHECKS[check]()
