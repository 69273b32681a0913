"""What an aggregation rule is: a Flower strategy whose author writes one method."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO
from typing import ClassVar, final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from fedsvd.client.rule import LocalRule
from fedsvd.factors import TrainsFactors
from fedsvd.lowrank import AdapterState, average
from fedsvd.records import (
    ARRAYS,
    CONFIG,
    KEEPS,
    RANKED,
    RANKS,
    TRAINS,
    WEIGHT,
    arrays_of,
    metrics_of,
    part_of,
    to_record,
    travelling,
    usable,
    views,
)
from fedsvd.strategies.server import ServerOptimizer


@dataclass(frozen=True)
class Update:
    """One client's result: its whole state after local training, and its weight p_k.

    Weights of a round sum to 1. Tensors that the client did not train are those it was sent.
    """

    client: int
    weight: float
    state: AdapterState


def weighted_mean(state: AdapterState, updates: Sequence[Update]) -> AdapterState:
    """Return `state` with every trained tensor replaced by its mean sum p_k x_k over the clients."""
    return average([u.state for u in updates], [u.weight for u in updates], into=state)


def weighted_extra(state: AdapterState, updates: Sequence[Update]) -> AdapterState:
    """Return `state` with the head's tensors replaced by their weighted means; the factors stay.

    Other than for `weighted_mean`, the clients' factors may have any ranks.
    """
    heads = [replace(u.state, factors=state.factors) for u in updates]
    return average(heads, [u.weight for u in updates], into=state)


class PublicView(ABC):
    """What a server may look at beside what clients release: public texts and the frozen weights."""

    @abstractmethod
    def gradients(
        self, state: AdapterState, kinds: Collection[str] | None = None
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the mean loss on the public texts and its gradient in everything that trains.

        With `kinds`, among "A", "B" and "extra" (a head that trains), in these instead, whether
        clients train them or not.
        """

    @abstractmethod
    def weight_gradients(self, state: AdapterState) -> Mapping[str, torch.Tensor]:
        """Return dL/dW (d_out, d_in), float64, of each layer's weight W = W0 + B A at a state.

        L is the mean loss on the public texts, with their labels.
        """

    @abstractmethod
    def weight(self, layer: str) -> torch.Tensor:
        """Return a layer's frozen weight W0 (d_out, d_in) as pretrained."""

    @abstractmethod
    def moment(self, layer: str) -> torch.Tensor:
        """Return E[x x^T] (d_in, d_in), float64, of a layer's inputs over the public tokens."""


@dataclass(frozen=True)
class NoiseView:
    """The noise in what a server is given in a round, as the public configuration implies it.

    `variance`: of every entry of the weighted mean of what clients released, from their plans
    (noise, clip, expected batch), the learning rate, the local steps and the weights. `total[layer]`:
    what has come into a layer's product so far, this round's too, as (sum over rounds in which B
    trained of variance ||A||_F^2 / r, sum over rounds of A of variance ||B||_F^2 / r), A and B as
    the round began. It is kept for strategies that add up moves (`Strategy.adds_moves`). Clients'
    data are in none of it.
    """

    variance: float
    total: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Strategy(TrainsFactors, ABC):
    """A server-side aggregation rule.

    An author writes `aggregate` and, if the defaults do not fit, says which factors the clients
    train and send (`trains`) and which they must be sent because they cannot derive them
    (`broadcasts`): subsets of "A", "B" and "W", the update of a layer's frozen weight. A head that
    trains travels both ways, unless `keeps` has "extra".

    What `aggregate` claims of itself is declared below and measured by
    `fedsvd.testing.check_strategy`. A constructor may set a claim that depends on its options.

    It is a Flower strategy whose arrays are the whole state, so it works in Flower's own loop too.
    All nodes of the grid take part; an engine's grid shows those of the round.
    """

    trains: ClassVar[tuple[str, ...]] = ("B",)
    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B")
    # Of what trains, what stays at each client: personal. "extra" is the head.
    keeps: tuple[str, ...] = ()
    # Whether it uses only what clients released, the state and public data. One that does not is
    # refused under privacy.
    post_processing: ClassVar[bool] = True
    # Whether the new factors are means of the clients' in the basis of the old ones, so that a server
    # optimiser can follow them.
    averages: ClassVar[bool] = False
    # Whether the new state is a function of the old one, public data and the weighted mean of the
    # replies: then the others' noise covers a client's part too, see docs/published_model.md.
    mean_only: ClassVar[bool] = False
    # Whether it relies on all clients holding the A that they were sent.
    needs_equal_A: ClassVar[bool] = False

    # What it works on beyond averaging: tensors that an adapter must have. () goes with any adapter.
    needs: ClassVar[tuple[str, ...]] = ("A", "B")

    # Whether updates may have other ranks than the state: clients.ranks.
    any_rank: ClassVar[bool] = False

    # Whether clients.ranks say how many components a client may move, of factors that it holds and
    # sends whole.
    selects: ClassVar[bool] = False

    # Whether it looks at public texts: data.public sets them aside.
    needs_public: bool = False

    # Whether B A is the sum of what clients released, one factor moving in a round, so that their
    # noise adds up in it: the run then records how far singular values stand out of it.
    adds_moves: bool = False

    # Whether it must know the noise in what clients released; refused where that does not follow from
    # the plan, and beside a server optimiser.
    needs_noise: bool = False

    # Whether it remembers something of each client; refused under privacy.unit=client, where the
    # server has one noised mean in their place.
    tells_clients_apart: bool = False

    # Whether it looks at how the clients of a round differ, so that one message is too few: refused
    # under privacy.unit=client and for rounds of one client.
    compares_clients: bool = False

    exact: bool = False  # the new W + B A is the old W plus the weighted mean of the B_k A_k
    weighted: bool = True  # a client is worth as much as two alike it of half its weight
    idempotent: bool = True  # where all clients send the same, the new W + B A is theirs
    fixed_point: bool = True  # where no client changed anything, W + B A stays
    # Claims that are measured where they are made. From the round `any_basis` on, and in none before,
    # clients that train A and B may each send (Q^T A_k, B_k Q), Q orthogonal, with the same W + B A.
    any_basis: int | None = None
    any_scale: bool = False  # the same W + B A for c times every A and 1/c times every B, c > 0
    weightless: bool = False  # no layer's W + B A depends on the clients' weights p_k

    device: torch.device | str = "cpu"  # where `aggregate` sees its tensors
    public: PublicView | None = None  # set before the first round
    noise: NoiseView | None = None  # set before every `aggregate`; None without privacy, or unknown
    local: LocalRule = LocalRule()  # of the clients' steps
    server: ServerOptimizer | None = None  # that follows the means; None takes them as they are
    _state: AdapterState | None = None  # of the round that is under way

    def ranks_of(self, state: AdapterState) -> dict[int, int]:
        """Return the ranks that this strategy has given clients; the settings' hold for others."""
        return {}

    def trains_in(self, round: int) -> tuple[str, ...]:
        """Return which of what `trains` do so in a round (from 1); all of them by default."""
        return self.trains

    def tells(self, state: AdapterState) -> dict[str, torch.Tensor]:
        """Return what of the state's memory clients are sent, by name; nothing by default."""
        return {}

    def asks(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what clients send beside `trained`: tensors of its shapes and dtypes, by name.

        The names are those of memory, and what comes is in an update's `state.memory`.
        """
        return {}

    def begin(self, state: AdapterState) -> AdapterState:
        """Return what the first round starts from; by default the adapter's state as it is.

        It looks at no private data, keeps W + B A, and changes only what is broadcast.
        """
        return state

    @abstractmethod
    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the next global state.

        `state` is what the round began with, `state.round` the number of this round (from 1), and
        `updates`, at least one, are in the order of client ids. Tensors are on the server's device,
        and not to be changed: they may be the bytes of a message.
        """

    @final
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each node of the grid what it cannot derive of the state in `arrays`."""
        state = AdapterState.from_tensors(views(arrays, self.device), server_round)
        self._state = state
        config["server-round"] = server_round
        config[TRAINS], config[KEEPS] = list(self.trains_in(server_round)), list(self.keeps)
        config.update(self.local.to_config())
        ranks = self.ranks_of(state)
        if ranks:
            config[RANKED], config[RANKS] = list(ranks), list(ranks.values())
        sent = state.select(travelling(self.broadcasts, self.keeps))
        wire = part_of(arrays, sent, self.tells(state))
        content = RecordDict({ARRAYS: wire, CONFIG: config})
        return [
            Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)
            for node in sorted(grid.get_node_ids())
        ]

    @final
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies, in the order of node ids, into the next state.

        Replies that failed or hold a number that is not finite are left out, also where no round loop
        of ours has looked at them before.
        """
        assert self._state is not None
        state = self._state
        valid = sorted((r for r in replies if usable(r)), key=lambda r: r.metadata.src_node_id)
        if not valid:
            return None, None
        weights = [float(metrics_of(r)[WEIGHT]) for r in valid]  # type: ignore[arg-type]
        total = sum(weights)
        updates = [
            Update(
                r.metadata.src_node_id,
                weight / total,
                state.update(views(arrays_of(r), self.device)),
            )
            for r, weight in zip(valid, weights, strict=True)
        ]
        new = self.aggregate(state, updates)
        self._state = new if self.server is None else self.server.step(state, new)
        return to_record(self._state.tensors()), MetricRecord()

    @final
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: the global model is evaluated on the server's validation part."""
        return []

    @final
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing; see `configure_evaluate`."""
        return None

    @final
    def summary(self) -> None:
        """Log what trains."""
        log(INFO, "\t%s: clients train %s", type(self).__name__, "".join(self.trains))
