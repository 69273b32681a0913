"""The backbone that a process keeps is what its files hold, whatever runs have done to it."""

import gc

import pytest
import torch

from fedsvd.models import kept
from fedsvd.models.backbone import load_backbone
from fedsvd.models.digest import weights_digest
from fedsvd.models.kept import kept_backbone
from fedsvd.settings import ModelSettings
from tests.tiny import make_inputs

QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture
def settings(tmp_path):
    make_inputs(tmp_path)
    kept.forget()
    yield ModelSettings(str(tmp_path / "model"))
    kept.forget()


def query(model):
    return model.get_submodule(QUERY).weight


def test_every_module_is_what_the_files_hold_and_shares_one_memory(settings):
    fresh, inputs = load_backbone(settings), {"input_ids": torch.tensor([[5, 6, 7]])}
    places = set()
    for _ in range(3):
        model, digest = kept_backbone(settings)
        assert digest == weights_digest(fresh) == weights_digest(model)
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training
        found = model(**inputs).last_hidden_state
        assert torch.equal(found, fresh(**inputs).last_hidden_state)
        places.add(query(model).data_ptr())
        model.left = model  # a circle, as hooks make them
        model.register_forward_hook(lambda *_: None)
        assert not kept._held.plain._forward_hooks
        del model
    assert len(places) == 1


@pytest.mark.parametrize("how", ["data", "in_place", "numpy"])
def test_weights_that_a_run_has_changed_are_read_anew(settings, how):
    before, model = query(load_backbone(settings)).clone(), kept_backbone(settings)[0]
    if how == "data":
        query(model).data.view(-1)[3] += 1e-3  # no version counter sees it
    elif how == "in_place":
        query(model).detach().mul_(1.5)
    else:
        query(model).numpy()[1, 2] = 7
    assert not torch.equal(query(model), before)
    del model
    again = kept_backbone(settings)[0]
    assert torch.equal(query(again), before)


def test_a_module_in_use_keeps_its_weights_to_itself(settings):
    first = kept_backbone(settings)[0]
    second, digest = kept_backbone(settings)
    assert digest == weights_digest(second) == weights_digest(first)
    assert query(first).data_ptr() != query(second).data_ptr()
    query(first).detach().zero_()
    assert query(second).any()


def test_buffers_are_not_shared(settings):
    model = kept_backbone(settings)[0]
    for name, buffer in model.named_buffers():
        assert buffer.data_ptr() != dict(kept._held.plain.named_buffers())[name].data_ptr(), name


def test_other_files_are_another_model(settings):
    old = kept_backbone(settings)[1]
    model = load_backbone(settings)
    query(model).detach().add_(1)
    model.save_pretrained(settings.name)
    assert kept_backbone(settings)[1] == weights_digest(model) != old
    gc.collect()
