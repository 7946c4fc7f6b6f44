"""A draft service that knows the texts beforehand, or nothing at all: the best case and the worst.

`python -m benchmarks.scripted_drafter [--texts FILE]`. FILE is JSON, a list of whole texts as lists
of token ids. Where a sequence begins one of them it proposes what follows there; elsewhere, tokens
at random. It computes nothing, so what it costs is the link and the verification alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_runtime.draft_protocol import (
    MAX_PROTOCOL_VERSION,
    MIN_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
)
from outrider_runtime.draft_tree import ROOT, CommitGap, DraftTree
from outrider_runtime.server import MAY_PING

_DESCRIPTION = draft_pb2.DrafterDescription(kind="scripted", max_sessions=1024)
_LOG_PROB = -0.05
"""Claimed of every token: whoever believes the claim alone verifies everything."""


@dataclass(slots=True)
class _Session:
    number: int
    tree: DraftTree
    depth: int
    text: list[int] | None
    """The known text that it follows, as far as was seen."""

    def wanted(self) -> int:
        return self.depth - len(self.tree.best_path())

    def position(self) -> int:
        return self.tree.committed_length + len(self.tree.best_path())


class ScriptedDrafter(draft_pb2_grpc.DraftServiceServicer):
    """Answers every update at once with a full chain."""

    def __init__(self, texts: Iterable[list[int]] = ()) -> None:
        self._texts = list(texts)
        self._chance = random.Random(0)

    async def Speculate(
        self,
        request_iterator: AsyncIterator[draft_pb2.SpeculateRequest],
        context: grpc.aio.ServicerContext[draft_pb2.SpeculateRequest, draft_pb2.SpeculateResponse],
    ) -> AsyncIterator[draft_pb2.SpeculateResponse]:
        """See the contract."""
        sessions: dict[int, _Session] = {}
        vocab_size = 1
        async for frame in request_iterator:
            if frame.HasField("hello"):
                vocab_size = frame.hello.vocab_size
                welcome = draft_pb2.Welcome(protocol_version=PROTOCOL_VERSION, drafter=_DESCRIPTION)
                yield draft_pb2.SpeculateResponse(welcome=welcome)
                continue
            changed = self._take(frame, sessions)
            if changed:
                grows = [self._grow(session, vocab_size) for session in changed]
                yield draft_pb2.SpeculateResponse(grows=grows)

    async def Describe(
        self,
        request: draft_pb2.DescribeRequest,
        context: grpc.aio.ServicerContext[draft_pb2.DescribeRequest, draft_pb2.DescribeResponse],
    ) -> draft_pb2.DescribeResponse:
        """See the contract."""
        return draft_pb2.DescribeResponse(
            min_protocol_version=MIN_PROTOCOL_VERSION,
            max_protocol_version=MAX_PROTOCOL_VERSION,
            drafter=_DESCRIPTION,
        )

    def _take(
        self, frame: draft_pb2.SpeculateRequest, sessions: dict[int, _Session]
    ) -> list[_Session]:
        changed = []
        for opened in frame.opens:
            sessions[opened.session] = session = _Session(
                opened.session, DraftTree(opened.token_ids), opened.limits.depth, None
            )
            changed.append(session)
        for commit in frame.commits:
            if (known := sessions.get(commit.session)) is None:
                continue
            try:
                known.tree.commit(commit.base_length, commit.token_ids)
            except CommitGap:
                continue
            if commit.HasField("limits"):
                known.depth = commit.limits.depth
            changed.append(known)
        for close in frame.closes:
            sessions.pop(close.session, None)
        return changed

    def _grow(self, session: _Session, vocab_size: int) -> draft_pb2.Grow:
        committed = session.tree.token_ids
        if session.text is None or session.text[: len(committed)] != committed:
            session.text = next((t for t in self._texts if t[: len(committed)] == committed), None)
        grow = draft_pb2.Grow(session=session.number, base_length=len(committed), complete=True)
        path = session.tree.best_path()
        parent = path[-1].id if path else ROOT
        for position in range(session.position(), session.position() + session.wanted()):
            if session.text is None:
                token_id = self._chance.randrange(vocab_size)
            elif position < len(session.text):
                token_id = session.text[position]
            else:
                break
            node = session.tree.add(parent, token_id, _LOG_PROB)
            grow.node_ids.append(node.id)
            grow.parent_ids.append(parent)
            grow.token_ids.append(token_id)
            grow.log_probs.append(_LOG_PROB)
            parent = node.id
        return grow


async def _serve(host: str, port: int, texts: Iterable[list[int]]) -> None:
    server = grpc.aio.server(options=[MAY_PING])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(ScriptedDrafter(texts), server)
    bound = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    print(f"scripted drafter on {host}:{bound}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--texts", type=Path)
    options = parser.parse_args()
    texts = json.loads(options.texts.read_text()) if options.texts else ()
    asyncio.run(_serve(options.host, options.port, texts))


if __name__ == "__main__":
    main()
