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
    """One client's result.

    Attributes:
        client: the id of the client.
        weight: its weight p_k. The weights of a round sum to 1.
        state: its whole state after local training. Tensors that the client did not train are those
            it was sent.
    """

    client: int
    weight: float
    state: AdapterState


def weighted_mean(state: AdapterState, updates: Sequence[Update]) -> AdapterState:
    """Return `state` with every trained tensor replaced by its mean sum p_k x_k over the clients."""
    return average([u.state for u in updates], [u.weight for u in updates], into=state)


def weighted_extra(state: AdapterState, updates: Sequence[Update]) -> AdapterState:
    """Return `state` with the head's tensors replaced by their weighted means; the factors stay.

    The clients' factors may have any ranks. For `weighted_mean` they must have those of `state`.
    """
    heads = [replace(u.state, factors=state.factors) for u in updates]
    return average(heads, [u.weight for u in updates], into=state)


class PublicView(ABC):
    """Public texts and frozen weights, which a server may use beside what clients release."""

    @abstractmethod
    def gradients(
        self, state: AdapterState, kinds: Collection[str] | None = None
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the mean loss on the public texts and its gradient in everything that trains.

        `kinds`, a subset of "A", "B" and "extra" (a head that trains), asks for these instead,
        whether clients train them or not.
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

    It does not depend on clients' data.

    Attributes:
        variance: of every entry of the weighted mean of what clients released. It follows from their
            plans (noise, clip, expected batch), the learning rate, the local steps and the weights.
        total: by layer, the noise in its product so far, with that of this round. It is a pair: the
            sum of variance ||A||_F^2 / r over rounds in which B trained, and the sum of
            variance ||B||_F^2 / r over rounds of A. A and B are those at the start of the round. It
            is kept for strategies that add up moves (`Strategy.adds_moves`).
    """

    variance: float
    total: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Strategy(TrainsFactors, ABC):
    """A server-side aggregation rule.

    An author writes `aggregate`. If the defaults do not fit, class attributes declare what clients
    train and send, what they must be sent, and what the rule claims of itself.
    `fedsvd.testing.check_strategy` measures the claims. A constructor may set a claim that depends
    on its options.

    It is a Flower strategy whose arrays are the whole state. So it works in Flower's own loop too.
    All nodes of the grid take part. An engine's grid shows those of the round.
    """

    trains: ClassVar[tuple[str, ...]] = ("B",)
    """Which of the factors "A" and "B" clients train and send."""

    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B")
    """What clients must be sent because they cannot derive it: a subset of "A", "B" and "W".

    "W" is the update of a layer's frozen weight. A head that trains travels both ways, unless `keeps`
    has "extra".
    """

    keeps: tuple[str, ...] = ()
    """What of the trained tensors stays at each client and is personal; "extra" is the head."""

    post_processing: ClassVar[bool] = True
    """Whether it uses only what clients released, the state and public data.

    A rule that uses more is refused under privacy.
    """

    averages: ClassVar[bool] = False
    """Whether the new factors are means of the clients' in the basis of the old ones.

    A server optimiser can follow such a rule.
    """

    mean_only: ClassVar[bool] = False
    """Whether the new state is a function of the old one, public data and the replies' weighted mean.

    The noise of others then covers a client's part too, see docs/published_model.md.
    """

    needs_equal_A: ClassVar[bool] = False
    """Whether it relies on all clients holding the A that they were sent."""

    needs: ClassVar[tuple[str, ...]] = ("A", "B")
    """The tensors of an adapter that it works on beyond averaging; () goes with any adapter."""

    any_rank: ClassVar[bool] = False
    """Whether updates may have other ranks than the state (`clients.ranks`)."""

    selects: ClassVar[bool] = False
    """Whether `clients.ranks` is how many components a client may move.

    Such a client holds and sends whole factors.
    """

    needs_public: bool = False
    """Whether it uses public texts, which `data.public` sets aside."""

    adds_moves: bool = False
    """Whether B A is the sum of what clients released, with one factor moving in a round.

    The noise of rounds then adds up in B A, and the run records the singular values over that noise.
    """

    needs_noise: bool = False
    """Whether it must know the noise in what clients released.

    It is refused where the noise does not follow from the plan, and beside a server optimiser.
    """

    tells_clients_apart: bool = False
    """Whether it remembers something of each client.

    It is refused under `privacy.unit=client`, where the server has one noised mean in their place.
    """

    compares_clients: bool = False
    """Whether it compares the clients of a round, so that one message is too few.

    It is refused under `privacy.unit=client` and for rounds of one client.
    """

    exact: bool = False
    """A claim: the new W + B A is the old W plus the weighted mean of the B_k A_k."""

    weighted: bool = True
    """A claim: a client has the effect of two clients alike it of half its weight."""

    idempotent: bool = True
    """A claim: where all clients send the same, the new W + B A is theirs."""

    fixed_point: bool = True
    """A claim: where no client changed anything, W + B A stays."""

    any_basis: int | None = None
    """A claim, measured if it is made: from this round on, and in none before, the basis is free.

    Clients that train A and B may each send (Q^T A_k, B_k Q), Q orthogonal, with the same W + B A.
    """

    any_scale: bool = False
    """A claim, measured if it is made: c A_k and B_k / c, c > 0, give the same W + B A."""

    weightless: bool = False
    """A claim, measured if it is made: no layer's W + B A depends on the clients' weights p_k."""

    device: torch.device | str = "cpu"
    """Where `aggregate` gets its tensors."""

    public: PublicView | None = None
    """Public texts and frozen weights, with `needs_public`; set before the first round."""

    noise: NoiseView | None = None
    """The noise in the replies; set before every `aggregate`, None without privacy or if unknown."""

    local: LocalRule = LocalRule()
    """What it asks of the clients' steps."""

    server: ServerOptimizer | None = None
    """The optimiser that follows the means; None takes them as they are."""

    _state: AdapterState | None = None  # of the round that is under way

    def ranks_of(self, state: AdapterState) -> dict[int, int]:
        """Return the ranks that this strategy has given clients; the settings' hold for others."""
        return {}

    def trains_in(self, round: int) -> tuple[str, ...]:
        """Return which of `trains` train in a round (from 1); all of them by default."""
        return self.trains

    def tells(self, state: AdapterState) -> dict[str, torch.Tensor]:
        """Return the tensors of the state's memory that clients are sent; none by default."""
        return {}

    def asks(self, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what clients send beside `trained`: tensors of its shapes and dtypes, by name.

        The names are those of memory. The tensors that arrive are in an update's `state.memory`.
        """
        return {}

    def begin(self, state: AdapterState) -> AdapterState:
        """Return what the first round starts from; by default the adapter's state as it is.

        It must use no private data, keep W + B A, and change only what is broadcast.
        """
        return state

    @abstractmethod
    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the next global state.

        `state` is the state that the round began with. `state.round` is the number of this round
        (from 1). `updates` holds at least one update, in the order of client ids. Tensors are on the
        server's device. They must not be changed, because they may be the bytes of a message.
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

        Replies that failed or hold a number that is not finite are left out, also in Flower's own
        loop, which does not check them.
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
