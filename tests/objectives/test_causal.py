"""Causal language models: losses, gradients and figures against loops of their own; whole runs."""

import json
import math
import signal

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, pipeline

import fedsvd
from fedsvd.client.dropout import keys_of_step, own_losses
from fedsvd.client.worker import build_worker
from fedsvd.errors import InputError
from fedsvd.interrupt import Interrupted
from fedsvd.models import language_model
from fedsvd.models.language_model import _Chunked, capped
from tests.conftest import compose_settings
from tests.objectives.small import CONFIGS, make_model, overrides, rows, tokenizer, write
from tests.tiny import outcome, run


def made(folder, kind="llama", *more):
    return build_worker(compose_settings(*overrides(folder, kind, *more)))


def moved(worker):
    """Move what trains from its start, where B = 0 hides the gradients of A."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in worker.model.trainable().values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return worker


def plain_losses(network, tokens, names):
    """Return -log p of the counted tokens of each row, by Transformers alone, one row at a time."""
    found = []
    for row in names:
        ids = tokens.columns["input_ids"][row].unsqueeze(0)
        logits = network(input_ids=ids).logits[0, :-1]
        each = -logits.log_softmax(dim=1)[range(ids.shape[1] - 1), ids[0, 1:]]
        found.append(each[tokens.counted[row][1:]])
    return found


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_gradients_of_examples_and_clipped_sums_are_those_of_a_loop(tmp_path, kind):
    worker = moved(made(tmp_path, kind, "training.factors=AB"))
    assert worker.plan.gradients == "hooks"
    assert worker.trains == ("A", "B")
    names = [3, 0, 5, 8, 2]
    assert len({int(worker.tokens.lengths[n]) for n in names}) > 2  # padded
    named = worker.model.trainable()
    worker.hooks.renew()
    worker.losses(names).sum().backward()
    found = {n: p.grad_sample.clone() for n, p in named.items()}
    worker.hooks.disable_hooks()
    alone = {n: [] for n in named}
    for row in names:
        loss = worker.losses([row])[0]
        for n, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            alone[n].append(g)
    for n in named:
        torch.testing.assert_close(found[n], torch.stack(alone[n]), rtol=1e-4, atol=1e-6)
    clip = 0.05
    norms = sum(g.flatten(1).square().sum(1) for g in found.values()).sqrt()
    assert bool((norms > clip).any())
    for n in named:
        clipped = sum(
            g * min(1.0, clip / float(torch.cat([alone[m][i].flatten() for m in named]).norm()))
            for i, g in enumerate(alone[n])
        )
        ours = torch.einsum("n,n...->...", (clip / norms).clamp(max=1.0), found[n])
        torch.testing.assert_close(ours, clipped, rtol=1e-4, atol=1e-7)


def test_a_row_more_or_less_moves_no_other_loss_and_masks_are_an_examples_own(tmp_path):
    worker = made(tmp_path, "llama", "adapter.dropout=0.3")
    worker = moved(worker)
    key = keys_of_step(worker.tokens, 0, "x")
    worker.model.set_dropout(True)
    losses = own_losses(worker.losses, key, worker.device, True, False)
    together, fewer = losses([4, 1, 7]).detach(), losses([1, 7]).detach()
    torch.testing.assert_close(together[1:], fewer, rtol=1e-5, atol=1e-6)
    worker.model.set_dropout(False)
    assert not torch.allclose(together, worker.losses([4, 1, 7]).detach())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_figures_are_those_of_a_plain_loop_of_transformers(tmp_path, kind):
    """Loss by rows, perplexity and accuracy by tokens, of the untrained model."""
    worker = made(tmp_path, kind)
    found = worker.evaluate(worker.initial, worker.task.validation)
    network = AutoModelForCausalLM.from_pretrained(tmp_path / kind).eval()
    with torch.no_grad():
        each = plain_losses(network, worker.tokens, worker.task.validation.tolist())
    every = torch.cat(each).double()
    assert found["perplexity"] == pytest.approx(math.exp(float(every.mean())), rel=1e-5)
    loss = float(torch.stack([e.double().mean() for e in each]).mean())
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["loss"] != pytest.approx(float(every.mean()), rel=1e-4)  # rows are unequal
    assert 0 <= found["token_accuracy"] <= 1


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, 3.0)])
@pytest.mark.parametrize("biased", [False, True])
def test_losses_in_chunks_are_those_of_all_logits_at_once(monkeypatch, scale, cap, biased):
    monkeypatch.setattr(language_model, "CHUNK_BYTES", 4 * 13 * 3)  # three tokens at a time
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(13, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(13, generator=generator, dtype=torch.float64) if biased else None
    hidden = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(13, (8,), generator=generator)
    found, right = _Chunked.apply(hidden, weight, bias, targets, scale, cap, False)
    logits = capped(scale * torch.nn.functional.linear(hidden, weight, bias), cap)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    assert torch.equal(right, logits.argmax(1) == targets)
    along = torch.randn(8, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad(found, hidden, along)
    (theirs,) = torch.autograd.grad(expected, hidden, along)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_gradient_of_few_tokens_is_as_exact_as_that_of_many(rows):
    """A sum over a large vocabulary, one product after another, would be off by 7e-6."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(49152, 16, generator=generator)
    hidden = torch.randn(rows, 16, generator=generator)
    targets = torch.randint(49152, (rows,), generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        x = hidden.detach().clone().to(dtype).requires_grad_(True)
        losses, _ = _Chunked.apply(x, weight.to(dtype), None, targets, 1.0, None, False)
        losses.sum().backward()
        found.append(x.grad.double())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 2e-6


def test_no_more_logits_stand_in_memory_than_a_chunk(tmp_path, monkeypatch):
    worker = made(tmp_path, "qwen2")
    sizes, linear = [], torch.nn.functional.linear

    def watched(x, weight, *rest):
        out = linear(x, weight, *rest)
        sizes.append(out.numel() if out.shape[-1] == 320 else 0)
        return out

    monkeypatch.setattr(language_model, "CHUNK_BYTES", 4 * 320 * 2)
    monkeypatch.setattr(language_model.nn.functional, "linear", watched)
    before = worker.losses([0, 1, 2]).detach()
    assert max(sizes) == 2 * 320
    monkeypatch.setattr(language_model, "CHUNK_BYTES", 2**26)
    torch.testing.assert_close(before, worker.losses([0, 1, 2]).detach())


def test_embeddings_and_output_layer_are_frozen_also_where_they_are_one(tmp_path):
    worker = made(tmp_path, "llama")
    model = worker.model
    table = model.backbone.get_input_embeddings().weight
    assert model.head.weight is table
    assert not table.requires_grad
    assert not [
        n for n in model.trainable() if "lora" not in n and n.rpartition(".")[2] not in "AB"
    ]
    assert worker.initial.extra == {}
    given = [o for o in overrides(tmp_path) if not o.startswith("adapter.")]
    settings = compose_settings(*given, "adapter=none")
    with pytest.raises(InputError, match="adapter: 'none'"):
        build_worker(settings)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # Ray's
def test_straight_resumed_and_ray_end_in_the_same_bits(tmp_path, monkeypatch):
    """Under privacy and without; also from Python's function with the Ray engine."""
    given = [*overrides(tmp_path), "rounds=3", "recorder.answers=4", "recorder.answer_tokens=4"]
    run(tmp_path / "straight", given)
    ray = fedsvd.run(*given, "engine=ray", "engine.workers=1", folder=tmp_path / "ray", show=False)
    asked = iter([None, None])  # before rounds 1 and 2; Ctrl-C comes in the second
    with monkeypatch.context() as patch:
        patch.setattr("fedsvd.interrupt.requested", lambda: next(asked, signal.SIGINT))
        with pytest.raises(Interrupted, match="after round 2"):
            run(tmp_path / "resumed", given)
    run(tmp_path / "resumed", given, "resume=auto")
    straight = outcome(tmp_path / "straight")
    assert ray.summary["state_digest"] == straight[0]
    keys = ("perplexity", "loss", "token_accuracy", "best_perplexity", "test_perplexity", "f1",
            "test_f1", "test_answered")  # fmt: skip
    for name in ("ray", "resumed"):
        found = outcome(tmp_path / name)
        assert found[:2] == straight[:2]
        assert [found[3][k] for k in keys] == [straight[3][k] for k in keys]
    run(tmp_path / "whole", given, "privacy=none", "training.schedule=constant")
    first = ("rounds=1", "recorder.answers=0")
    run(tmp_path / "longer", given, "privacy=none", "training.schedule=constant", *first)
    run(tmp_path / "longer", given, "privacy=none", "training.schedule=constant", "resume=auto")
    whole, longer = outcome(tmp_path / "whole"), outcome(tmp_path / "longer")
    assert whole[0] == longer[0] != straight[0]
    assert [whole[3][k] for k in keys] == [longer[3][k] for k in keys]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's
def test_what_a_run_leaves_is_the_model_that_was_trained(tmp_path):
    """PEFT's loader, `score` and the run's own figures agree; generation ignores padding."""
    given = [*overrides(tmp_path), "privacy=none", "training.lr=2.0", "adapter=pissa"]
    summary = run(tmp_path / "run", given)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    network = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter").eval()
    loaded = fedsvd.load(tmp_path / "run")
    pairs = [(row["prompt"], row["completion"]) for row in rows()]
    worker = made(tmp_path, "llama", "privacy=none")
    texts = {text: i for i, text in enumerate(worker.task.texts)}
    test = [text for text in pairs if texts[text] in set(worker.task.test.tolist())]
    found = loaded.score(test)
    with torch.no_grad():
        each = plain_losses(network, worker.tokens, [texts[text] for text in test])
    torch.testing.assert_close(found, torch.stack([e.mean() for e in each]), rtol=1e-4, atol=1e-5)
    assert float(found.double().mean()) == pytest.approx(summary["test_loss"], rel=1e-4)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    every = {m["round"]: m["perplexity"] for m in map(json.loads, lines) if "perplexity" in m}
    assert summary["perplexity"] < every[0]
    assert summary["best_perplexity"] == min(every.values()) < max(every.values())
    place = tmp_path / "run" / "checkpoints"
    best = place / f"round-{min(every, key=every.__getitem__):06d}.safetensors"
    assert (place / "best.safetensors").samefile(best)
    prompts = [prompt for prompt, _ in pairs[:5]]
    assert len({len(p.split()) for p in prompts}) > 1
    said = loaded.generate(prompts, max_new_tokens=6)
    assert said == [loaded.generate(p, max_new_tokens=6)[0] for p in prompts]
    answered = loaded.answer(list(zip(prompts, said, strict=True)), max_new_tokens=6)
    assert (answered.exact_match, answered.f1, list(answered.said)) == (1, 1, said)
    loaded.save(tmp_path / "whole")
    speaks = pipeline("text-generation", model=str(tmp_path / "whole"), device="cpu")
    how = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    assert [speaks(p, **how)[0]["generated_text"] for p in prompts[:2]] == said[:2]
    first = tokenizer()(prompts[0], return_tensors="pt")
    whole = network.generate(**first, max_new_tokens=6, do_sample=False)
    assert said[0] == tokenizer().decode(
        whole[0, first["input_ids"].shape[1] :], skip_special_tokens=True
    )


def test_the_side_on_which_a_tokeniser_pads_changes_nothing(tmp_path):
    given = overrides(tmp_path)
    expected = build_worker(compose_settings(*given)).losses([0, 1, 2, 3]).detach()
    make_model(tmp_path / "llama", side="left")
    again = build_worker(compose_settings(*given))
    assert again.tokenizer.padding_side == "left"
    assert torch.equal(again.losses([0, 1, 2, 3]).detach(), expected)


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    given = overrides(tmp_path)
    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="depends on later ones"):
        build_worker(compose_settings(*given, f"model.name={tmp_path / 'bert'}"))


def test_clients_by_size_where_rows_have_no_labels(tmp_path):
    worker = made(tmp_path, "llama", "partition=dirichlet", "privacy=none")
    assert worker.task.label_names == ()
    sizes = [len(part) for part in worker.parts]
    assert sum(sizes) == len(worker.task.train)
    assert np.ptp(sizes) > 0


def test_figures_of_each_clients_rows(tmp_path):
    given = overrides(tmp_path, "gpt2", "data.client=who", "partition=natural", "privacy=none")
    write(tmp_path / "rows.jsonl", [{**row, "who": f"k{i % 3}"} for i, row in enumerate(rows(90))])
    summary = run(tmp_path / "run", given, "rounds=1", "data.test=0.2")
    found = summary["test_by_client"]
    assert set(found) <= {"k0", "k1", "k2"}
    assert len(found) > 1
    sizes = [figures["examples"] for figures in found.values()]
    assert sum(sizes) == summary["test_examples"]
    losses = [figures["loss"] for figures in found.values()]
    mean = float(np.average(losses, weights=sizes))
    assert mean == pytest.approx(summary["test_loss"], rel=1e-6)
    assert {"perplexity", "token_accuracy"} <= set(found["k0"])
    assert "accuracy" not in summary
