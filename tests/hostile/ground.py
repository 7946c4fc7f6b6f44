"""Where inputs are sent: generic calls of both services, so that nothing tames what goes out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc
from draft.harness import FINGERPRINT
from draft.hostile import AdversarialDrafter
from draft.reference import VOCAB_SIZE
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from outrider.v1 import draft_pb2
from outrider.v1 import generation_pb2 as pb
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from service.asking import PLAIN, ask
from service.harness import PATIENCE, until

KEY = "open sesame, says the hostile caller"
KEYED: Sequence[tuple[str, str | bytes]] = (("authorization", f"Bearer {KEY}"),)

GENERATION = "/outrider.v1.GenerationService"
DRAFTING = "/outrider.v1.DraftService"
HEALTH = "/grpc.health.v1.Health"

HONEST = 99
"""Number of the session by which a link shows that it still serves."""

Frame = draft_pb2.SpeculateRequest | bytes


class Ground(NamedTuple):
    """Channels to both services, and the drafter that the target is linked with."""

    target: grpc.Channel
    drafter: grpc.Channel
    linked: AdversarialDrafter


Send = Callable[[Ground], object]
"""Sends one input and reads the answer to its end; raises what the call ends with."""


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def to_target(method: str, message: Message | bytes, **options: Any) -> Send:
    """A call of the target; `method` may be a whole path."""
    return lambda ground: _call(ground.target, method, GENERATION, message, options)


def to_drafter(method: str, message: Message | bytes, **options: Any) -> Send:
    """A call of the drafter that is no link."""
    return lambda ground: _call(ground.drafter, method, DRAFTING, message, options)


def _call(
    channel: grpc.Channel,
    method: str,
    service: str,
    message: Message | bytes,
    options: dict[str, Any],
) -> list[bytes]:
    path = method if method.startswith("/") else f"{service}/{method}"
    call: Any = channel.unary_stream(path)
    return list(call(_bytes(message), **{"timeout": PATIENCE, "metadata": KEYED, **options}))


def hello(**changes: Any) -> draft_pb2.SpeculateRequest:
    """A good greeting, but for the changes."""
    said: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "tokenizer_fingerprint": FINGERPRINT,
        "vocab_size": VOCAB_SIZE,
    }
    return draft_pb2.SpeculateRequest(hello=draft_pb2.Hello(**(said | changes)))


def opening(session: int = 1, **changes: Any) -> draft_pb2.Open:
    """A good session, but for the changes."""
    said: dict[str, Any] = {
        "token_ids": [1, 2, 3],
        "num_prompt_tokens": 2,
        "limits": draft_pb2.Limits(window=4, depth=4, max_nodes=8),
    }
    return draft_pb2.Open(session=session, **(said | changes))


def link(*frames: Frame, **options: Any) -> Callable[[Ground], list[draft_pb2.SpeculateResponse]]:
    """A draft link: the frames, then a good session whose growth is awaited."""

    def send(ground: Ground) -> list[draft_pb2.SpeculateResponse]:
        grown = threading.Event()

        def outgoing() -> Iterator[bytes]:
            yield from map(_bytes, frames)
            if frames:
                yield draft_pb2.SpeculateRequest(opens=[opening(HONEST)]).SerializeToString()
                grown.wait(PATIENCE)

        stream: Any = ground.drafter.stream_stream(f"{DRAFTING}/Speculate")
        call = stream(outgoing(), **{"timeout": PATIENCE, "metadata": KEYED, **options})
        answers = []
        try:
            for data in call:
                answers.append(draft_pb2.SpeculateResponse.FromString(data))
                if any(g.session == HONEST and g.complete for g in answers[-1].grows):
                    grown.set()
        finally:
            grown.set()
        return answers

    return send


def updates(*, told: bool = True, **updates: Any) -> Send:
    """A link with one frame of updates of which session 1 makes no sense.

    Args:
        told: Whether the drafter has to say so, which it does by a Resync of that session.
        updates: Fields of the frame.
    """
    send = link(hello(), draft_pb2.SpeculateRequest(**updates))

    def checked(ground: Ground) -> None:
        resyncs = [resync.session for answer in send(ground) for resync in answer.resyncs]
        assert (1 in resyncs) == told

    return checked


def attacked(name: str) -> Send:
    """A request of a target whose drafter does what `name` says, until it has done so."""

    def send(ground: Ground) -> None:
        before = Counter(ground.linked.attacks)
        ground.linked.repertoire = ["wrong_tokens", name]
        generate = to_target("Generate", ask("abcabc", max_new_tokens=12))
        try:
            until(lambda: (generate(ground), ground.linked.attacks[name])[1], before[name].__lt__)
        finally:
            ground.linked.repertoire = ["wrong_tokens"]

    return send


def twice(request: pb.GenerateRequest) -> Send:
    """The same request again while it runs; what the second call ends with counts."""

    def send(ground: Ground) -> object:
        stream: Any = ground.target.unary_stream(f"{GENERATION}/Generate")
        first = stream(_bytes(request), timeout=PATIENCE, metadata=KEYED)
        next(first)
        try:
            return to_target("Generate", request)(ground)
        finally:
            first.cancel()

    return send


def completions(ground: Ground) -> tuple[list[int], list[int]]:
    """What the target writes and the drafter drafts, always the same; both must be healthy."""
    for channel in (ground.target, ground.drafter):
        check: Any = channel.unary_unary(f"{HEALTH}/Check")
        health = health_pb2.HealthCheckResponse.FromString(check(b"", timeout=PATIENCE))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    texts = []
    for speculation in (None, PLAIN):
        request = ask("once upon a time", max_new_tokens=8, speculation=speculation)
        answers = _call(ground.target, "Generate", GENERATION, request, {})
        chunks = [pb.GenerateResponse.FromString(data).chunk for data in answers]
        texts.append([token for chunk in chunks for token in chunk.token_ids])
    assert texts[0] == texts[1]
    drafts = [
        token
        for answer in link(hello())(ground)
        for grow in answer.grows
        for token in grow.token_ids
    ]
    return texts[0], drafts
