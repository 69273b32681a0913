"""The ClientApp of a node: policy first, then the account, then training; types when it refuses."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsvd.client.app import make_client_app
from fedsvd.client.worker import Worker, get_worker
from fedsvd.errors import InputError
from fedsvd.node import account
from fedsvd.node.messages import check_training, evaluated, released
from fedsvd.node.mods import App, find_mod, with_mods
from fedsvd.node.policy import KEY, VARIABLE, Policy, policy_path, read_policy
from fedsvd.node.proposal import overrides_in, proposal
from fedsvd.node.refusals import Refusal, Refused, answer, tell_owner
from fedsvd.node.rules import check_noise, settings_under
from fedsvd.privacy.plan import make_plan
from fedsvd.settings import Settings

KINDS = ("evaluate", "query", "train")
SIMULATION = "flwr.simulation.ray_transport.ray_actor"  # whose actors call the ClientApp


@final
class NodeApp(ClientApp):
    """A ClientApp that answers whatever goes wrong on a node with a type, never with text.

    Flower would send the message of an exception to the server. In Flower's simulation, where
    everything is one user's, errors stay what they are.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the answer to a message."""
        if simulates(context):
            return super().__call__(message, context)
        try:
            if message.metadata.message_type not in KINDS:
                raise Refused(
                    Refusal.UNUSABLE, f"a message of type {message.metadata.message_type}"
                )
            return _numbers_only(super().__call__(message, context))
        except (KeyboardInterrupt, SystemExit):  # of the owner; Flower tells nobody why
            raise
        except Refused as refused:
            tell_owner(refused.kind, refused)
            return answer(message, refused.kind)
        except BaseException as error:  # also panics of libraries in Rust
            tell_owner(Refusal.UNAVAILABLE, error)
            return answer(message, Refusal.UNAVAILABLE)


def simulates(context: Context) -> bool:
    """Return whether this call is one of Flower's simulation on the user's own machine.

    Told by who calls, which is a fact of this process: no message and no run's configuration can
    make a SuperNode's process look like an actor of the simulation. A policy rules in any case.
    """
    return called_by(SIMULATION) and policy_path(context.node_config) is None


def called_by(module: str) -> bool:
    """Return whether a function of that module is on this thread's stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _numbers_only(reply: Message) -> Message:
    """Return the reply; RuntimeError if it would send any text beside its fixed names."""
    if not reply.has_error():
        for record in reply.content.config_records.values():
            if not all(_number(value) for value in record.values()):
                raise RuntimeError("the answer holds a text")
    return reply


def _number(value: Any) -> bool:
    if isinstance(value, list):
        return all(_number(v) for v in value)
    return isinstance(value, (int, float))


def policy_of(context: Context) -> Policy:
    """Return the policy of this node; Refused if there is none that can be used."""
    try:
        path = policy_path(context.node_config)
        if path is None:
            raise InputError(
                f'there is no policy: give {KEY}="/path/policy.yaml" in --node-config, or set '
                f"{VARIABLE}; docs/deployment.md shows one"
            )
        if context.node_config.get("overrides"):
            raise InputError("--node-config overrides: what a node fixes stands in its policy file")
        return read_policy(path)
    except InputError as error:
        raise Refused(Refusal.NO_POLICY, str(error)) from error


def holder_of(context: Context) -> int:
    """Return which client this node is, as its owner's `partition-id` says."""
    return int(context.node_config["partition-id"])


def settings_of(policy: Policy, context: Context) -> Settings:
    """Return the settings that the server's overrides make under the policy; Refused outside it."""
    holder = holder_of(context)
    try:
        found = proposal(overrides_in(context.run_config))
        return settings_under(policy, found, holder)
    except Exception as error:  # no private data has been looked at
        raise Refused(Refusal.NOT_ALLOWED, f"{error or type(error).__name__}") from error


def train(message: Message, context: Context) -> Message:
    """Train one round within the policy and the budget, through the owner's mods."""
    return _within(_train)(message, context)


def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on the node's rows where the policy lets diagnostics out, through the owner's mods."""
    return _within(_evaluate)(message, context)


def _within(app: App) -> App:
    def call(message: Message, context: Context) -> Message:
        try:
            mods = [find_mod("mods of the policy", path) for path in policy_of(context).mods]
        except InputError as error:
            raise Refused(Refusal.NO_POLICY, str(error)) from error
        return with_mods(app, mods)(message, context)

    return call


def _train(message: Message, context: Context) -> Message:
    """Charge one round before it begins, and train it."""
    policy, holder = policy_of(context), holder_of(context)
    settings = settings_of(policy, context)
    try:
        number, _ = check_training(message, settings)
    except Exception as error:  # looks at the message alone
        raise Refused(Refusal.UNUSABLE, f"{error or type(error).__name__}") from error
    if policy.privacy.unit == "example":
        # With the rows as they are now: what its owner has taken out is in no later round.
        worker = _charged(policy, settings, holder, context, number)
        if worker.plan.clients[holder].examples:
            raise RuntimeError("the plan knows the number of rows")
    else:
        get_worker(settings, anew=True)
    reply = make_client_app(settings)(message, context)
    return released(reply, message, policy.privacy.diagnostics and settings.privacy.diagnostics)


def _evaluate(message: Message, context: Context) -> Message:
    policy = policy_of(context)
    if not policy.privacy.diagnostics:
        raise Refused(Refusal.NOT_ALLOWED, "evaluation: privacy.diagnostics is false in the policy")
    settings = settings_of(policy, context)
    return evaluated(make_client_app(settings)(message, context), message)


def _charged(
    policy: Policy, settings: Settings, holder: int, context: Context, number: int
) -> Worker:
    """Return the worker that will train, after the round's most has been entered in the account.

    The plan is made from public quantities before any row is read; the worker must have the same.
    """
    own = policy.privacy
    assert own.epsilon is not None
    assert own.delta is not None
    try:
        plan = make_plan(settings, [0] * settings.clients.number)
        planned = plan.clients[holder]
        check_noise(policy, planned.noise_multiplier, planned.sample_rate)
    except Exception as error:  # no private data has been looked at
        raise Refused(Refusal.NOT_ALLOWED, f"{error or type(error).__name__}") from error
    worker = get_worker(settings, anew=True)
    plan = replace(plan, gradients=worker.plan.gradients)  # decided on the model, without any row
    if worker.plan != plan or not (plan.per_example and plan.secure_noise):
        raise RuntimeError("the worker's plan is not the one that was checked")
    rows, task = worker.parts[holder], worker.task
    if own.delta * len(rows) >= 1:
        raise InputError(f"privacy.delta of the policy: {own.delta:g} is not below 1/{len(rows)}")
    texts = [(task.texts[i], task.label_names[task.labels[i]]) for i in rows]
    assert policy.ledger is not None
    account.charge(
        Path(policy.ledger),
        account.Charge(
            data=policy.id,
            content=account.content_digest(texts),
            noise_multiplier=planned.noise_multiplier,
            sample_rate=planned.sample_rate,
            steps=settings.training.local_steps,
            run=str(context.run_id),
            round=number,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        own.epsilon, own.delta, own.accountant,
    )  # fmt: skip
    return worker
