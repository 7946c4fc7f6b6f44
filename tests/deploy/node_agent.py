"""What a node and a client do, from inside a namespace: one JSON command a line, one answer each.

`health` asks as the kubelet's gRPC probes do; `generate` is a client's call; `begin` starts one
whose answer `finish` waits for.
"""

from __future__ import annotations

import concurrent.futures
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from outrider_client import Client, GenerationConfig, OutriderError, SpeculationConfig, TLSConfig

SERVER_NAME = "outrider-target.outrider.svc.cluster.local"
_WORKERS = concurrent.futures.ThreadPoolExecutor(8)
_BEGUN: list[concurrent.futures.Future[Any]] = []


def health(address: str, service: str, timeout: float) -> str:
    """A status of grpc.health.v1, or of the call."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = stub.Check(request, timeout=timeout)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def generate(tokens: int, prompt: str, **target: Any) -> dict[str, Any]:
    """What became of a request that waits for its drafter in each round."""
    config = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, num_assistant_tokens_schedule="constant"
    )
    waiting = SpeculationConfig(method="remote", pacing="synchronous", draft_timeout_ms=500)
    began = time.monotonic()
    with _client(**target) as client:
        try:
            answer = client.generate(prompt, config, speculation=waiting)
        except OutriderError as error:
            return {"error": type(error).__name__}
    speculation = answer.speculation
    return {
        "text": answer.text,
        "accepted": speculation.num_accepted_tokens,
        "rounds": speculation.num_drafts,
        "seconds": time.monotonic() - began,
    }


def connect(address: str, port: int, timeout: float) -> bool:
    """Whether somebody takes the connection."""
    try:
        socket.create_connection((address, port), timeout).close()
    except TimeoutError:
        return False
    return True


def links(**target: Any) -> dict[str, str]:
    """The addresses of the links that are up, and what drafts there."""
    with _client(**target) as client:
        found = client.server_info().draft_links
    return {link.address: link.kind for link in found if link.state == "ready"}


def _client(address: str, key: str | None = None, authority: str | None = None) -> Client:
    tls = TLSConfig(ca=authority, server_name=SERVER_NAME) if authority else None
    return Client(address, api_key=key, tls=tls, max_retries=0, timeout=60)


def begin(**arguments: Any) -> int:
    """Starts a request; its number."""
    _BEGUN.append(_WORKERS.submit(generate, **arguments))
    return len(_BEGUN) - 1


def finish(number: int) -> Any:
    """Waits for it."""
    return _BEGUN[number].result()


def main() -> None:
    """Until the input ends."""
    commands: dict[str, Callable[..., Any]] = {
        "health": health,
        "generate": generate,
        "begin": begin,
        "finish": finish,
        "links": links,
        "connect": connect,
    }
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(commands[asked.pop("do")](**asked)), flush=True)


if __name__ == "__main__":
    main()
