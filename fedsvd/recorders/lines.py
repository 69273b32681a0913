"""The lines of a run on the screen: its facts, its clients, its rounds, its summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from fedsvd.adapters.build import stand_ins
from fedsvd.objectives.build import objective_of
from fedsvd.objectives.metric import GENERATED, Metric, metric_of
from fedsvd.privacy.plan import PrivacyPlan, noise_source, warnings_of
from fedsvd.rounds.record import GLOBAL, Start
from fedsvd.settings import Settings
from fedsvd.settings.model import UPPER_THIRD
from fedsvd.terminal import Output, columns, plain

GRADIENTS = {
    "hooks": "of each example by hooks, found right for this model",
    "loop": "of each example alone, one at a time",
}
FEW = 20  # clients that get a line each


def header(start: Start) -> list[str]:
    """Return what a run is: a name and a fact a line."""
    settings, task, model, plan = start.settings, start.task, start.model, start.plan
    chosen, output = settings.model, objective_of(settings.task).output(settings)
    cut = f"; {task.truncated} truncated to {chosen.max_length} tokens" if task.truncated else ""
    facts = [
        ("task", f"{task.name} from {task.source}: {task.train} train, {task.validation} validation, "
                 f"{task.test} test ({task.duplicates} duplicates dropped){cut}"),
        ("model", f"{chosen.name} from {model.origin}; {output.phrase}"),
        *([("evaluates", _evaluates(start))] if task.evaluated is not None else []),
        ("adapter", _adapter(settings)),
        ("strategy", settings.strategy.target),
        *([("averaging", settings.averaging.describe(start.rounds))]
          if settings.averaging.active else []),
        *([("start", settings.start.describe(start.started))] if settings.start.active else []),
        ("trains", f"{model.trained:,} of {model.parameters:,} parameters"),
        ("privacy", _budget(plan)),
        *([("noise", noise_source(plan))] if plan.private else []),
        *([("gradients", GRADIENTS[plan.gradients])] if plan.gradients else []),
        ("runs on", f"{model.device}, {model.precision}"
                    f"{' (auto)' if settings.training.precision == 'auto' else ''}"
                    f"{'; ' if model.blocks else ''}{model.blocks}"),
    ]  # fmt: skip
    facts += [("WARNING", told) for told in warnings_of(plan)]
    stand = stand_ins(settings)
    if "validation" in stand:
        seen = min(settings.adapter.calibration, task.validation)
        told = "texts of validation, which stand for public ones (data.public=0)"
        facts.append(("starts from", f"{seen} {told}: its accuracy is not of unseen texts"))
    if "training" in stand:
        seen = min(settings.adapter.calibration, task.train)
        told = "texts of training with their labels, which stand for public ones (data.public=0)"
        facts.append(("starts from", f"{seen} {told}"))
    return columns([(name, plain(fact)) for name, fact in facts], left=(0, 1))


def clients(start: Start, to: Output, width: int) -> list[str]:
    """Return the clients, a line each: what they hold, their rates, noise and bounds.

    `width` are the columns of the screen `to`: labels that find no room there are left out of a
    client's mix, the rarest first; the report has all of them. More than `FEW` clients are summed up.
    """
    plan = start.plan
    if len(plan.clients) > FEW:
        return _many(plan)
    rows = [["client", "examples", "rate", "steps<=", "noise", "epsilon<="]]
    rows += [
        [
            str(c.client), f"{c.examples:,}", f"{c.accounted_rate:.3f}", str(c.steps_bound),
            _number(c.noise_multiplier or None, ".3f"), _number(c.epsilon_bound, ".3f"),
        ]
        for c in plan.clients
    ]  # fmt: skip
    lines = columns(rows)
    used = max(map(len, lines))
    if len(start.task.labels) < 2:  # there is nothing that clients hold shares of
        return lines
    names = [to.fit(plain(name)) for name in start.task.labels]
    held = [start.task.clients[c.client] for c in plan.clients]
    mixes = ["labels", *(mix(names, counts, width - used - 2) for counts in held)]
    return [f"{line:<{used}}  {told}" for line, told in zip(lines, mixes, strict=True)]


def mix(names: Sequence[str], counts: Sequence[int], width: int) -> str:
    """Return the shares of labels as a text of at most `width` columns, if any fits.

    In the labels' order if all fit, otherwise the largest and "..."; without a name where none fits.
    """
    total = sum(counts)
    if not total:
        return "on its own machine"
    shares = [f"{name} {n / total:.0%}" for name, n in zip(names, counts, strict=True)]
    whole = "  ".join(shares)
    if cell_len(whole) <= width:
        return whole
    order = sorted(range(len(shares)), key=lambda k: -counts[k])
    for kept in range(len(shares) - 1, 0, -1):
        told = "  ".join([*(shares[k] for k in order[:kept]), "..."])
        if cell_len(told) <= width:
            return told
    return f"{sum(n > 0 for n in counts)} labels, most {max(counts) / total:.0%}"


def _many(plan: PrivacyPlan) -> list[str]:
    sizes = [c.examples for c in plan.clients]
    lines = [f"{len(sizes)} clients of {min(sizes):,} to {max(sizes):,} examples"]
    if plan.private:
        noise = [c.noise_multiplier for c in plan.clients]
        lines.append(
            f"noise multiplier {min(noise):.3f} to {max(noise):.3f}, at most "
            f"{max(c.steps_bound for c in plan.clients)} steps a client, epsilon at most "
            f"{max(c.epsilon_bound or 0 for c in plan.clients):.3f}"
        )
    return lines


def _evaluates(start: Start) -> str:
    """Return on which rows the figures of rounds before the last are."""
    every, task = start.settings.recorder.evaluate_every, start.task
    when = "after every round" if every == 1 else f"every {every} rounds"
    return (
        f"{task.evaluated} of {task.validation} validation examples {when}, the same every time; "
        "all of them after the last one"
    )


def _adapter(settings: Settings) -> str:
    adapter = settings.adapter
    if adapter.name == "none":
        return "none (head only)"
    rank = "of its own choice" if adapter.rank is None else adapter.rank
    scale = " (scale alpha / sqrt rank)" if adapter.rslora else ""
    blocks = {None: "", UPPER_THIRD: ", upper third"}
    return (
        f"{adapter.label}, rank {rank}, alpha {adapter.alpha:g}{scale} "
        f"on {', '.join(adapter.targets)}"
        f"{blocks.get(adapter.layers, f', last {adapter.layers} blocks')}"
    )


def _budget(plan: PrivacyPlan) -> str:
    if not plan.private:
        return "none"
    what = {"dp_sgd": "DP-SGD at the clients", "client_gaussian": "noise at the server"}
    if plan.epsilon is None:
        most = max(c.epsilon_bound or 0 for c in plan.clients)
        budget = f"noise multiplier {plan.clients[0].noise_multiplier:g}, costs epsilon {most:.4g}"
    else:
        budget = f"epsilon {plan.epsilon:g}"
    if not plan.enforced:
        budget += f" as published (privacy.accounting={plan.accounting})"
    threats, clipping = str(plan.threat_model), str(plan.clipping)
    return (
        f"{what[plan.mechanism]}, unit: one {plan.unit}; {budget} at delta {plan.delta:g} "
        f"({str(plan.accountant).upper()}), {clipping.replace('_', ' ')} clip {plan.clip_norm:g}; "
        f"counts {'public' if plan.public_counts else 'private'}, "
        f"{threats.replace('_', ' ')}"
    )


def round_line(metrics: Mapping[str, Any]) -> str:
    """Return what came of a round."""
    metric = metric_of(metrics)
    if metric.name in metrics:
        rows = f" on {metrics['examples']}" if "examples" in metrics else ""
        told = f"{metric.title} {metrics[metric.name]:.4f}{rows}"
        parts = [f"loss {metrics['loss']:.4f}", told]
    else:  # the global state is evaluated every recorder.evaluate_every rounds
        parts = [f"clients' loss {_number(metrics.get('train_loss'), '.4f')}"]
    if metrics.get("epsilon_max") is not None:
        parts.append(f"epsilon {metrics['epsilon_max']:.3f}")
    took_part = metrics.get("clients") or ()
    if len(took_part) > FEW:
        parts.append(f"{len(took_part)} clients")
    elif took_part:
        parts.append("clients " + ",".join(map(str, took_part)))
    return "  ".join(parts)


def trouble(metrics: Mapping[str, Any]) -> list[str]:
    """Return what went wrong in a round, a line each."""
    lines = [f"  client {k} {why}; left out" for k, why in metrics.get("failed", {}).items()]
    lines += [f"  client {k} has spent its budget; sits out" for k in metrics.get("sat_out", [])]
    if metrics.get("not_aggregated"):
        n = metrics["not_aggregated"]
        lines.append(f"  the strategy made nothing of {n} valid replies; the state stays")
    if metrics.get("ended"):
        lines.append(f"  the run ends here: {metrics['ended']}")
    return [plain(line) for line in lines]


def ending(told: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what came of a run: a name and a value a line."""
    metric = metric_of(told)
    name, raw = metric.name, told.get(f"raw_{metric.name}")
    rows = [
        (f"validation {metric.title}", f"{told[name]:.4f}{_on(told)}  ({_best(told, name)})"),
        *([("  of the last model", f"{raw:.4f}")] if raw is not None else []),
        (f"test {metric.title}", _number(told[f"test_{name}"], ".4f") + _on(told, "test_")),
        *_answers(told),
        *_exported(told, metric),
        ("epsilon spent", _spent(told)),
        *_above(told),
        *_published(told),
        ("sent up / down", f"{_size(told['bytes_up'])} / {_size(told['bytes_down'])}"),
        ("time", clock(told["seconds"]) + _shares(told)),
        ("state digest", told["state_digest"][:16]),
        ("run folder", plain(str(folder))),
    ]
    return columns(rows, left=(0, 1))


def _answers(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of answers of each part, a line a part; none where none were generated."""
    lines = []
    for part, prefix in (("validation", ""), ("test", "test_")):
        held = [m for m in GENERATED if told.get(f"{prefix}{m.name}") is not None]
        if held:
            figures = ", ".join(f"{told[prefix + m.name]:.4f}" for m in held)
            name = f"{part} {', '.join(m.title for m in held)}"
            lines.append((name, f"{figures} on {told[f'{prefix}answered']:,} answers"))
    return lines


def _exported(told: Mapping[str, Any], metric: Metric) -> list[tuple[str, str]]:
    """Return which model is evaluated and which exported, where these are not the global one."""
    evaluated, exported = told.get("evaluated"), told.get("exported")
    if evaluated is None or exported is None or evaluated == exported == GLOBAL:
        return []
    if evaluated == exported:
        return [("evaluated, exported", evaluated)]
    figures = [
        f"{part} {metric.title} {told[key]:.4f}"
        for part in ("validation", "test")
        if (key := f"exported_{'test_' if part == 'test' else ''}{metric.name}") in told
    ]
    return [("evaluated", evaluated), ("exported", "; ".join([exported, *figures]))]


def _on(told: Mapping[str, Any], part: str = "") -> str:
    """Return on how many examples a figure is, "" if that is not told."""
    number = told.get(f"{part}examples")
    return f" on {number:,} examples" if number else ""


def _best(told: Mapping[str, Any], name: str) -> str:
    """Return the best of the rounds' figures, with its rows where these are not the last one's."""
    figure, number = f"{told[f'best_{name}']:.4f}", told.get("best_examples")
    if number is None or number == told.get("examples"):
        return f"best {figure}"
    return f"best of the rounds on the same {number}: {figure}, round {told['best_round']}"


def _shares(told: Mapping[str, Any]) -> str:
    """Return how much of the time went into training and evaluation, "" if that is not told."""
    if "seconds_evaluating" not in told or not told["seconds"]:
        return ""
    parts = [
        f"{100 * told[f'seconds_{name}'] / told['seconds']:.0f} % {name}"
        for name in ("training", "evaluating")
    ]
    return f"  ({', '.join(parts)})"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _spent(summary: Mapping[str, Any]) -> str:
    if summary["epsilon_max"] is None:
        return "no privacy"
    target = f" of {summary['epsilon_target']:g}" if summary["epsilon_target"] is not None else ""
    spent = f"{summary['epsilon_max']:.4f}{target}"
    return f"{spent} at delta {summary['delta']:g} (largest of any client)"


def _above(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the line that says who has spent more than the target; none where nobody has."""
    above = summary.get("epsilon_above_target") or {}
    if not above:
        return []
    order = sorted(above, key=lambda k: -above[k])
    each = ", ".join(f"client {k} {above[k]:.4f}" for k in order[:FEW])
    more = f" and {len(order) - FEW} more" if len(order) > FEW else ""
    told = f"THE TARGET {summary['epsilon_target']:g} IS EXCEEDED: {each}{more}"
    return [("WARNING", f"{told} (privacy.accounting={summary['accounting']})")]


def _published(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the line of the second figure, with what it assumes; none without privacy."""
    if summary["epsilon_max"] is None or "epsilon_published" not in summary:
        return []
    figure, assumed = summary["epsilon_published"], summary["epsilon_published_assumed"]
    return [("epsilon, published", f"{_number(figure, '.4f')}  ({assumed})")]


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
