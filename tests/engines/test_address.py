"""Addresses that no cluster can be joined at are refused within seconds, in one line."""

import contextlib
import socket
import sys
import threading
import time
from concurrent import futures

import grpc
import pytest
import ray
from ray._private.utils import validate_socket_filepath

from fedsvd.engines import address, cluster
from fedsvd.engines.cluster import LONGEST, SOCKET, check_engine, connect
from fedsvd.errors import InputError
from fedsvd.run import main
from fedsvd.settings import EngineSettings

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No cluster is joined, and none is named by the environment."""
    ray.shutdown()
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def listener(says):
    """A port that says something to whoever connects, and then listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])
                    kept[-1].sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in kept:
            connection.close()


@contextlib.contextmanager
def other_service():
    """A gRPC server that is no Ray cluster."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def refused(given, key="engine.address"):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        check_engine(EngineSettings("ray", address=given))
    assert time.monotonic() - began < 15
    told = str(caught.value)
    assert told.startswith(f"{key}: {given!r}")
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    "given",
    ["foo", "here:", ":6379", "host:99999", "host:0", "http://host:80", "a b:3", "::1:6379",
     "ray://", "host:6379/x"],
)  # fmt: skip
def test_what_is_no_address(given):
    assert "it must be host:port (an IPv6 host in brackets), auto or local" in refused(given)


@pytest.mark.parametrize(
    "given", ["127.0.0.1:1", "[::1]:1", "no-such-host.invalid:6379", "ray://127.0.0.1:1"]
)
def test_where_nothing_listens(given):
    assert "cannot be joined: " in refused(given)


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH_9.6\r\n", b"-ERR unknown command\r\n"])
def test_where_something_else_listens(says):
    with listener(says) as given:
        assert "no Ray cluster answers there" in refused(given)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_another_service_answers(scheme):
    with other_service() as given:
        assert "another service than a Ray cluster" in refused(scheme + given)


def test_where_something_listens_and_says_nothing(monkeypatch):
    monkeypatch.setattr(address, "ANSWER", 1.0)
    with listener(b"") as given:
        assert "no Ray cluster answered within 1 s" in refused(given)


def test_a_name_server_that_does_not_answer(monkeypatch):
    assert address.ANSWER < address.PATIENCE < 15
    monkeypatch.setattr(address, "PATIENCE", 0.2)
    monkeypatch.setattr(address, "_ask", lambda given: time.sleep(3))
    assert "no answer within 0.2 s" in refused("host:6379")


def test_the_environment_is_named_where_it_named_the_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for given in (None, "auto"):
        with pytest.raises(InputError, match=r"^RAY_ADDRESS: '127\.0\.0\.1:1' cannot be joined"):
            check_engine(EngineSettings("ray", address=given))
    assert address.named("local") == (None, "engine.address")
    assert address.named("a:1") == ("a:1", "engine.address")
    check_engine(EngineSettings("inline", address="foo"))


def test_no_cluster_on_this_machine(monkeypatch):
    from ray._private import services

    monkeypatch.setattr(services, "_find_address_from_flag", lambda flag: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    assert "no Ray cluster runs on this machine" in refused("auto")


def test_the_command_refuses_before_any_work(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    began = time.monotonic()
    assert main(["engine=ray", "engine.address=127.0.0.1:1", "model.name=/no/such"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: engine.address: '127.0.0.1:1' cannot be joined: no Ray cluster")
    assert len(told.splitlines()) == 1
    assert time.monotonic() - began < 15
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_sockets_is_named(variable, monkeypatch):
    room = LONGEST - len(SOCKET)
    long = "/tmp/" + "é" * ((room - 5) // 2) + "x" * ((room - 5) % 2)
    monkeypatch.setenv(variable, long)
    validate_socket_filepath(long + SOCKET)  # Ray's own check
    cluster._check_sockets()
    monkeypatch.setenv(variable, long + "y")
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath(long + "y" + SOCKET)
    with pytest.raises(InputError, match=rf"^{variable}: .*{room + 1} bytes; .* at most {room} "):
        connect(None)
    if variable == "TMPDIR":
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")
        cluster._check_sockets()


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(InputError, match=r"^engine: Ray cannot start on this machine: .*nowhere"):
        connect(None)
