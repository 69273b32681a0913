"""python -m benchmarks.strategies [--layers 48] [--clients 50] [--only NAME ...]: all server steps.

RoBERTa-large: 48 layers of 1024 x 1024, rank 8, 50 clients. Each rule runs in a process of its
own, on float32 updates. Processor seconds are those of all threads, which other jobs disturb less
than the clock; ratios are of them. Memory is the peak above what the updates themselves take. The
baselines form what the papers write: the mean of the dense products B_k A_k of every layer, and its
SVD where a rule needs one. Scaled gets a quadratic for its public loss: what a model would take for
it is not counted. Both baselines are measured on --dense layers and multiplied up to --layers.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch

from benchmarks.common import machine
from fedsvd import strategies
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.machine import resident
from fedsvd.strategies import PublicView, Strategy, Update

D, RANK = 1024, 8
DENSE = {"dense mean": False, "dense mean and SVD": True}
SKIPPED = ("NoiseView", "PublicView", "ServerOptimizer", "Strategy", "Update")
OPTIONS: dict[str, dict[str, Any]] = {
    "FedSvdRefresh fold": {"tail": "fold"},
    "FedSvdDct fold": {"tail": "fold"},
    "Align rotation": {"method": "rotation"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--dense", type=int, default=2)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    rules = [
        n
        for n in strategies.__all__
        if n not in SKIPPED and isinstance(getattr(strategies, n), type)
    ]
    known = [*DENSE, *rules, *OPTIONS]
    names = arguments.only or known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(known)}")
    print(
        f"{machine()}; {arguments.layers} layers {D} x {D}, rank {RANK}, {arguments.clients} clients"
    )
    heads = f"{'seconds':>10}{'processor':>11}{'to dense mean':>15}"
    print(f"\n{'':22}{heads}{'peak MiB':>10}{'to dense mean':>15}")
    base: tuple[float, float] | None = None
    for name in names:
        seconds, processor, peak = alone(name, arguments)
        base = base or (processor, peak)
        ratios = f"{processor / base[0]:>15.3f}{peak:>10.0f}{peak / base[1]:>15.3f}"
        print(f"{name:22}{seconds:>10.2f}{processor:>11.2f}{ratios}", flush=True)


def alone(name: str, arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Return seconds, processor seconds of all threads and peak MiB of a rule's step."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=measure, args=(name, vars(arguments), queue))
    process.start()
    seconds, processor, peak = json.loads(queue.get())
    process.join()
    return seconds, processor, peak


def measure(name: str, options: dict[str, Any], queue: Any) -> None:
    layers = options["dense"] if name in DENSE else options["layers"]
    rule = None if name in DENSE else make(name)
    state, updates = case(layers, options["clients"], rule)
    before = peak_mib()
    began, used = time.perf_counter(), time.process_time()
    if rule is None:
        dense(updates, layers, DENSE[name])
    else:
        rule.aggregate(state, updates)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    factor = options["layers"] / layers
    # A dense rule would hold every layer's new weight: what it returns is counted in full.
    kept = 4 * D * D * (options["layers"] - layers) / 2**20 if rule is None else 0
    queue.put(json.dumps([seconds * factor, processor * factor, peak_mib() - before + kept]))


def make(name: str) -> Strategy:
    cls = getattr(strategies, name.split(" ")[0])
    rule: Strategy = cls(**OPTIONS.get(name, {}))
    if rule.needs_public:
        rule.public = Quadratic()
    return rule


class Quadratic(PublicView):
    """Half the squared length of all factors."""

    def gradients(
        self, state: AdapterState, kinds: Collection[str] | None = None
    ) -> tuple[float, dict[str, torch.Tensor]]:
        named = state.select(kinds or ("A", "B"))
        return 0.5 * float(sum(x.square().sum() for x in named.values())), named

    def weight_gradients(self, state: AdapterState) -> Mapping[str, torch.Tensor]:
        raise NotImplementedError

    def weight(self, layer: str) -> torch.Tensor:
        raise NotImplementedError

    def moment(self, layer: str) -> torch.Tensor:
        raise NotImplementedError


def case(layers: int, clients: int, rule: Strategy | None) -> tuple[AdapterState, list[Update]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    start = AdapterState(
        {f"layer{i}": LowRank(draw(RANK, D), draw(D, RANK)) for i in range(layers)}, round=12
    )
    trains = ("A", "B") if rule is None else rule.trains_in(start.round)
    updates = []
    for k in range(clients):
        moved = {n: t + 0.1 * draw(*t.shape) for n, t in start.select(trains).items()}
        updates.append(Update(k, 1 / clients, start.update(moved)))
    return start, updates


def dense(updates: list[Update], layers: int, decomposed: bool) -> list[torch.Tensor]:
    """What a rule costs that forms every client's product."""
    new = []
    for i in range(layers):
        total = torch.zeros(D, D)
        for u in updates:
            total += u.weight * u.state.factors[f"layer{i}"].product()
        if decomposed:
            U, S, Vh = torch.linalg.svd(total, full_matrices=False)
            total = (U[:, :RANK] * S[:RANK]) @ Vh[:RANK]
        new.append(total)
    return new


def peak_mib() -> float:
    return resident() / 2**20


if __name__ == "__main__":
    main()
