"""The address of a Ray cluster, tried before anything else: Ray itself would wait for minutes."""

import os
import re
import threading
from collections.abc import Callable
from typing import Any

from fedsvd.errors import InputError, wrong
from fedsvd.terminal import one_line

ANSWER = 8.0  # seconds in which a cluster must answer
CLIENT = "ray://"  # before the address of a Ray client's server
PATIENCE = 12.0  # seconds for all of it, a slow name server included


def named(address: str | None, key: str = "engine.address") -> tuple[str | None, str]:
    """Return the address that counts, None to start a cluster here, and where it was named."""
    if address in (None, "", "auto") and os.environ.get("RAY_ADDRESS"):
        address, key = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    return (None if address in (None, "", "local") else address), key


def check_address(address: str, key: str = "engine.address") -> None:
    """Raise InputError, which names `key`, unless a Ray cluster answers that can be joined here.

    Takes at most `PATIENCE` seconds.
    """
    given = re.fullmatch(r"(ray://)?(\[[^\]/]+\]|[^:/\[\]\s]+):(\d{1,5})", address)
    if address != "auto" and (given is None or not 0 < int(given[3]) < 65536):
        raise wrong(key, address, "host:port (an IPv6 host in brackets), auto or local")
    told = _within(PATIENCE, lambda: _refusal(address))
    if told:
        raise InputError(f"{key}: {address!r} cannot be joined: {told}")


def _within(seconds: float, answer: Callable[[], str]) -> str:
    """Return what `answer` returns in a thread, which a signal need not wait for."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(answer()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no answer within {seconds:g} s"


def _refusal(address: str) -> str:
    """Return why the cluster cannot be joined; empty if it can be."""
    try:
        return _ask(address)
    except ConnectionError:
        return "no Ray cluster runs on this machine"
    except Exception as error:  # what gRPC raises has a code; a name without address is an OSError
        told = {
            "UNIMPLEMENTED": "what listens there is another service than a Ray cluster",
            "UNAVAILABLE": "no Ray cluster answers there",
            "DEADLINE_EXCEEDED": f"no Ray cluster answered within {ANSWER:g} s",
        }
        return told.get(_code(error)) or one_line(str(error))[:200] or type(error).__name__


def _ask(address: str) -> str:
    """Ask the cluster's head for its nodes on this machine; raise what gRPC raises."""
    from ray._private import services
    from ray._private.grpc_utils import init_grpc_channel
    from ray._raylet import NodeID
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    if address == "auto":
        services.find_gcs_addresses.cache_clear()  # type: ignore[attr-defined]
        address = str(services.canonicalize_bootstrap_address("auto"))
    # As Ray itself, past the proxy that http_proxy names.
    channel = init_grpc_channel(address.removeprefix(CLIENT), [("grpc.enable_http_proxy", 0)])
    try:
        if address.startswith(CLIENT):
            return _ping(channel)
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        request = gcs_service_pb2.GetAllNodeInfoRequest()  # type: ignore[attr-defined]
        known = head.GetAllNodeInfo(request, timeout=ANSWER).node_info_list
    finally:
        channel.close()
    here = {NodeID.from_hex(node).binary() for node in services.find_node_ids()}
    if here & {node.node_id for node in known if node.state == node.ALIVE}:
        return ""
    return "no node of this cluster runs on this machine (ray start --address=... starts one)"


def _ping(channel: Any) -> str:
    """Ask a Ray client's server whether it is there; raise what gRPC raises."""
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    server: Any = ray_client_pb2_grpc.RayletDriverStub(channel)
    request = ray_client_pb2.ClusterInfoRequest(  # type: ignore[attr-defined]
        type=ray_client_pb2.ClusterInfoType.PING  # type: ignore[attr-defined]
    )
    server.ClusterInfo(request, timeout=ANSWER)
    return ""


def _code(error: Any) -> str:
    return str(getattr(getattr(error, "code", lambda: None)(), "name", ""))
