"""The audit flags planted bugs, and not the code as it is."""

import pytest

from fedsvd.audit.audit import Options, audit
from tests import planted
from tests.conftest import compose_settings
from tests.tiny import make_inputs

# Nearly six times as many canaries' directions as canaries, and steps of a few milliseconds.
EXAMPLE = ["privacy.epsilon=3", "rounds=6", "training.local_steps=2", "adapter.rank=8"]
CLIENT = [
    "privacy=client_level", "clients.number=12", "clients.per_round=6", "rounds=8", "adapter.rank=8",
]  # fmt: skip
QUICK = Options(canaries=240, replays=120)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The names of what the audit flags under overrides of a tiny run."""
    inputs = make_inputs(tmp_path_factory.mktemp("tiny"), width=64)

    def flagged(*overrides, options=QUICK):
        found = audit(compose_settings(*inputs, *overrides), options)
        assert len(found.verdicts) == 16
        return {f"{v.part}: {v.name}" for v in found.flagged}

    return flagged


BUGS = [
    (planted.no_noise, {"mechanism: noise", "pipeline: noise", "mechanism: epsilon"}),
    (planted.half_the_noise, {"mechanism: noise", "pipeline: noise", "mechanism: epsilon"}),
    (planted.twice_the_rate, {"mechanism: sampling rate", "pipeline: sampling rate"}),
    (planted.clipping_left_out, {"mechanism: sensitivity", "pipeline: clipping"}),
    (planted.clipping_after_the_sum, {"mechanism: sensitivity"}),
    (planted.noise_reused_over_rounds, {"pipeline: noise is fresh"}),
    (planted.ledger_reset, {"pipeline: ledger"}),
    (planted.noise_shared_by_clients, {"pipeline: noise is fresh"}),
    (planted.one_step_a_round_charged, {"pipeline: ledger"}),
    (planted.each_tensor_clipped_to_the_whole_clip, {"mechanism: sensitivity"}),
    (planted.batches_of_a_fixed_size, {"pipeline: Poisson batches"}),
]


@pytest.mark.parametrize(("bug", "expected"), BUGS, ids=[b.__name__ for b, _ in BUGS])
def test_a_planted_bug_is_flagged(bug, expected, monkeypatch, flags):
    bug(monkeypatch)
    found = flags(*EXAMPLE)
    assert expected <= found
    if expected == {"pipeline: ledger"}:
        assert found <= {"pipeline: ledger", "pipeline: epsilon"}


AT_THE_SERVER = [
    (planted.no_noise_at_the_server, {"mechanism: noise", "pipeline: noise"}),
    (planted.half_the_noise_at_the_server, {"mechanism: noise", "pipeline: noise"}),
    (planted.updates_not_clipped, {"mechanism: sensitivity", "pipeline: clipping"}),
    (planted.noise_reused_at_the_server, {"pipeline: noise is fresh"}),
    (planted.ledger_reset, {"pipeline: ledger"}),
]


@pytest.mark.parametrize(
    ("bug", "expected"), AT_THE_SERVER, ids=[b.__name__ for b, _ in AT_THE_SERVER]
)
def test_a_planted_bug_at_the_server_is_flagged(bug, expected, monkeypatch, flags):
    bug(monkeypatch)
    assert expected <= flags(*CLIENT)


@pytest.mark.parametrize("seed", range(3))
def test_the_code_as_it_is_is_not_flagged(seed, flags):
    assert flags(*EXAMPLE, f"seed={seed}") == set()


OTHERS = {
    "secure noise": ["privacy.secure_noise=true"],
    "per-layer clipping": ["privacy.clipping=per_layer"],
    "automatic clipping": ["privacy.clipping=automatic"],
    "AdamW": ["training.optimizer=adamw", "training.lr=0.001"],
    "A and B in turns": ["strategy=la_lora"],
    "A and B by rounds": ["strategy=rolora"],
    "B stays at clients": ["strategy=fedsa"],
    "ranks": ["strategy=flora", "clients.ranks=[8,8,4,4,2,2]"],
    "a regulariser": ["strategy=fedavg", "adapter=sorsa"],
    "subspaces": ["model.head=grassmann"],
    "every step": ["training.batch_size=5000"],
    "one example at a time": ["privacy.gradients=loop"],
    "dropout": ["model.dropout=0.1", "adapter.dropout=0.05"],
}


@pytest.mark.parametrize("overrides", OTHERS.values(), ids=OTHERS)
def test_other_configurations_are_not_flagged(overrides, flags):
    assert flags(*EXAMPLE, "rounds=3", *overrides) == set()


SERVERS = {
    "seen": [],
    "hidden": ["clients.participation=poisson", "privacy.threat_model=trusted_server",
               "privacy.secure_noise=true"],
    "adaptive clip": ["privacy.clip_quantile=0.5"],
    "secure noise": ["privacy.secure_noise=true"],
}  # fmt: skip


@pytest.mark.parametrize("overrides", SERVERS.values(), ids=SERVERS)
def test_the_server_as_it_is_is_not_flagged(overrides, flags):
    assert flags(*CLIENT, *overrides) == set()


def test_the_default_model_with_real_gradients():
    options = Options(canaries=100, part="pipeline", real_gradients=True)
    settings = compose_settings(
        "privacy.epsilon=3", "rounds=1", "data.limit=300", "training.batch_size=8",
        "privacy.accountant=rdp", "training.precision=fp32",
    )  # fmt: skip
    found = audit(settings, options)
    looked = {v.name for v in found.verdicts if v.flagged is not None}
    assert found.flagged == []
    assert {"clipping", "canaries", "ledger", "sampling rate"} <= looked
    assert not {"noise", "noise is fresh"} & looked
