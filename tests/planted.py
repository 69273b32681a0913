"""Bugs that void the guarantee, planted in the real code by `patch` (pytest's monkeypatch)."""

import torch

from fedsvd.client import training
from fedsvd.privacy import client_level, dpsgd
from fedsvd.privacy.ledger import Ledger
from fedsvd.randomness import Purpose
from fedsvd.rounds import noised


def no_noise(patch):
    patch.setattr(dpsgd, "noised", lambda totals, std, generator: list(totals))


def half_the_noise(patch):
    real = dpsgd.noised
    patch.setattr(dpsgd, "noised", lambda totals, std, g: real(totals, std / 2, g))


def twice_the_rate(patch):
    real = dpsgd.poisson_sample
    for module in (dpsgd, training):
        patch.setattr(module, "poisson_sample", lambda n, q, g: real(n, min(1.0, 2 * q), g))


def clipping_left_out(patch):
    def sums(grads, clip_norm, kind="flat"):
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
        return [g.sum(dim=0) for g in grads], norms

    patch.setattr(dpsgd, "clipped_sums", sums)


def clipping_after_the_sum(patch):
    def sums(grads, clip_norm, kind="flat"):
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
        totals = [g.sum(dim=0) for g in grads]
        whole = float(torch.stack([t.norm() for t in totals]).norm())
        return [t * min(1.0, clip_norm / max(whole, 1e-30)) for t in totals], norms

    patch.setattr(dpsgd, "clipped_sums", sums)


def _stream_without(patch, module, left_out):
    """Streams of noise that forget one of their keys (round, client)."""
    real = module.numpy_stream

    def stream(seed, purpose, *keys):
        noise = purpose is Purpose.NOISE
        return real(seed, purpose, *(k for i, k in enumerate(keys) if not noise or i != left_out))

    patch.setattr(module, "numpy_stream", stream)


def noise_reused_over_rounds(patch):
    _stream_without(patch, training, 0)


def noise_shared_by_clients(patch):
    _stream_without(patch, training, 1)


def ledger_reset(patch):
    real = Ledger.record_round

    def record(self, round, asked, taken):
        self.events.clear()
        real(self, round, asked, taken)

    patch.setattr(Ledger, "record_round", record)


def one_step_a_round_charged(patch):
    real = Ledger.record_round

    def record(self, round, asked, taken):
        real(self, round, asked, dict.fromkeys(asked, 1))

    patch.setattr(Ledger, "record_round", record)


def each_tensor_clipped_to_the_whole_clip(patch):
    def sums(grads, clip_norm, kind="flat"):
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads])
        factors = (clip_norm / norms).clamp(max=1.0)
        pairs = zip(factors, grads, strict=True)
        return [torch.einsum("n,n...->...", w, g) for w, g in pairs], norms.norm(dim=0)

    patch.setattr(dpsgd, "clipped_sums", sums)


def batches_of_a_fixed_size(patch):
    def shuffled(n, q, generator):
        return generator.permutation(n)[: round(q * n)].tolist()

    patch.setattr(training, "poisson_sample", shuffled)


def no_noise_at_the_server(patch):
    patch.setattr(client_level, "noised", lambda totals, std, generator: list(totals))


def half_the_noise_at_the_server(patch):
    real = client_level.noised
    patch.setattr(client_level, "noised", lambda totals, std, g: real(totals, std / 2, g))


def updates_not_clipped(patch):
    def sums(deltas, clip_norm, kind="flat"):
        return [d.sum(dim=0) for d in deltas], torch.zeros(len(deltas[0]))

    patch.setattr(client_level, "clipped_sums", sums)


def noise_reused_at_the_server(patch):
    _stream_without(patch, noised, 0)
