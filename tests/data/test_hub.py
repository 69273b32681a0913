"""The hub is asked one question, and what is not there is told at once."""

import http.server
import logging
import threading
import time

import pytest
from huggingface_hub import constants

from fedsvd.data import hub
from fedsvd.data.sources import read_tables
from fedsvd.errors import InputError
from fedsvd.models.backbone import load_backbone, load_tokenizer
from fedsvd.settings import DataSettings, ModelSettings

NOWHERE = "http://127.0.0.1:9"  # the port of discard, where nobody listens


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.unreachable.cache_clear()
    yield
    hub.unreachable.cache_clear()


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)


@pytest.mark.parametrize("loader", [load_backbone, load_tokenizer])
@pytest.mark.parametrize("name", ["models/minilm", "no-such-model"])
def test_a_model_that_is_nowhere(loader, name, no_hub, capfd):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        loader(ModelSettings(name=name))
    told = str(caught.value)
    assert f"model.name: '{name}' cannot be loaded: there is no such folder here" in told
    assert f"the hub at {NOWHERE} cannot be reached" in told
    assert "\n" not in told
    assert capfd.readouterr().err == ""
    assert time.monotonic() - began < 15  # the retries of the hub's client take half a minute


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "my/texts"}, "data.path: 'my/texts' cannot be loaded: there is no such file or"),
        ({"hub": "no/such"}, "data.hub: 'no/such' cannot be loaded: the hub at"),
    ],
)
def test_data_that_is_nowhere(given, message, no_hub, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_tables(DataSettings("mine", **given))
    assert message in str(caught.value)
    assert "and nothing of that name is in its cache" in str(caught.value)
    assert capfd.readouterr().err == ""
    assert time.monotonic() - began < 15


def test_offline_by_choice_is_said(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and nothing of that name"):
        load_tokenizer(ModelSettings(name="no-such-model"))


@pytest.mark.parametrize(
    ("status", "why"), [(200, None), (404, None), (503, "answers with status 503")]
)
def test_one_question_is_asked(status, why, monkeypatch):
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        for _ in range(3):
            found = hub.unreachable()
            assert (found is None) == (why is None)
            assert why is None or why in found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(asked) == 1


def test_the_client_is_as_it_was_afterwards(no_hub):
    with hub.hub_files() as why:
        assert why is not None
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    assert logging.getLogger("huggingface_hub").level == logging.ERROR
