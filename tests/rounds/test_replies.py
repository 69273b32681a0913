"""What counts of what arrives: reordered, duplicated, delayed, dropped, spoilt."""

import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsvd import records
from fedsvd.client.faults import _with
from fedsvd.engines.inline import InlineGrid
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.rounds.replies import receive
from fedsvd.strategies import FedSVD

CLIENTS = 5
START = AdapterState(
    {"l": LowRank(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), torch.ones(4, 2))}
)


def client_app():
    """Adds to B what depends on client and round, as a client's training would."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        k = context.node_config["partition-id"]
        number = message.content.config_records["config"]["server-round"]
        B = records.from_record(records.arrays_of(message))["l.B"]
        generator = torch.Generator().manual_seed(100 * number + k)
        sent = {"l.B": B + torch.randn(B.shape, generator=generator)}
        content = RecordDict(
            {
                records.ARRAYS: records.to_record(sent),
                records.METRICS: MetricRecord({records.WEIGHT: 1.0 + k}),
                records.REPORT: ConfigRecord({"steps": 2}),
            }
        )
        return Message(content, reply_to=message)

    return app


def rounds(disturb, count=3, valid=None):
    """Run rounds over the real grid and strategy; `disturb` is what happens on the way.

    With `valid` only the replies of those clients (a set a round) are handed on.
    """
    grid, strategy, state, earlier = InlineGrid(client_app(), CLIENTS), FedSVD(), START, []
    seen = []
    for number in range(1, count + 1):
        arrays = records.to_record(state.tensors())
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        replies = list(grid.send_and_receive(messages))
        given_in = list(replies)
        if valid is not None:
            replies = [r for r in replies if r.metadata.src_node_id in valid[number - 1]]
        else:
            replies = disturb(replies, earlier)
        earlier += given_in
        got = receive(messages, replies, lambda k, s=state: s.select(("B",)), 2)
        seen.append({r.metadata.src_node_id for r in got.good})
        assert set(got.failed) == set(range(CLIENTS)) - seen[-1]
        if got.good:
            result, _ = strategy.aggregate_train(number, got.good)
            state = AdapterState.from_tensors(records.from_record(result), number)
    return state.digest(), seen


EVENT = st.sampled_from(["whole", "twice", "dropped", "late", "spoilt", "spoilt too", "stranger"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_state_depends_only_on_the_set_of_valid_replies(data):
    expected = []

    def disturb(replies, earlier):
        arrived, valid = [], set()
        for reply in replies:
            event = data.draw(EVENT)
            node = reply.metadata.src_node_id
            content = RecordDict(dict(reply.content.items()))
            content[records.METRICS] = MetricRecord({records.WEIGHT: float("nan")})
            spoilt = _with(reply, content=content)
            if event in ("whole", "twice", "stranger"):
                valid.add(node)
                arrived += [reply] * (2 if event == "twice" else 1)
            if event == "stranger":
                arrived.append(_with(reply, src_node_id=CLIENTS + node))
            if event == "late":
                arrived += [r for r in earlier if r.metadata.src_node_id == node]
            if event in ("spoilt", "spoilt too"):
                arrived += [spoilt] if event == "spoilt" else [spoilt, reply]
        expected.append(valid)
        return data.draw(st.permutations(arrived))

    digest, seen = rounds(disturb)
    assert seen == expected
    assert digest == rounds(None, valid=seen)[0]


def received(change):
    grid, strategy = InlineGrid(client_app(), 2), FedSVD()
    messages = list(
        strategy.configure_train(1, records.to_record(START.tensors()), ConfigRecord(), grid)
    )
    one, two = grid.send_and_receive(messages)
    return receive(messages, [*change(one), two], lambda k: START.select(("B",)), 2)


def test_the_reasons_are_told():
    assert received(lambda r: []).failed == {0: "did not answer"}
    twice = received(lambda r: [r, r])
    assert twice.failed == {}
    assert twice.ignored == {0: "sent its reply 2 times"}
    stale = received(lambda r: [_with(r, reply_to_message_id="x")])
    assert stale.failed == {0: "answered a message of another round"}
    stranger = received(lambda r: [r, _with(r, src_node_id=9)])
    assert stranger.ignored == {9: "answered without being asked"}
    assert stranger.failed == {}


def with_report(steps):
    def change(reply):
        content = RecordDict(dict(reply.content.items()))
        content[records.REPORT] = ConfigRecord({"steps": steps})
        return [_with(reply, content=content)]

    return change


def test_steps_that_cannot_be_are_not_believed():
    assert received(with_report(1)).steps == {0: 1, 1: 2}
    for steps in (-1, 3, True, 1.5, "2"):
        assert received(with_report(steps)).steps == {1: 2}


def test_readers_do_not_stumble_over_what_a_client_sends():
    from flwr.app import Array, ArrayRecord

    def sending(array):
        def change(reply):
            content = RecordDict(dict(reply.content.items()))
            content[records.ARRAYS] = ArrayRecord({"l.B": array})
            return [_with(reply, content=content)]

        return received(change).failed[0]

    head = b"\x93NUMPY\x01\x00"
    for data in (b"", head, head + b"\xff\xff", head + b"\x05\x00{'a':", b"not numpy at all"):
        array = Array(dtype="float32", shape=(4, 2), stype="numpy.ndarray", data=data)
        assert "cannot be read" in sending(array)
    text = Array(torch.zeros(4, 2).numpy().astype("U3"))
    assert "dtype" in sending(text)
    assert "dtype" in sending(Array(torch.zeros(4, 2).numpy().astype("uint16")))
