"""Drafters that a target must survive: one that guesses at random, one that breaks every rule.

Small servicers of their own, so that nothing of the real draft service tames them. Serve one with
`serving`.
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider_runtime.draft_protocol import (
    MAX_PROTOCOL_VERSION,
    MIN_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
)
from outrider_runtime.draft_tree import ROOT, CommitGap, DraftTree
from outrider_runtime.server import MAY_PING

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


def description(max_sessions: int = 1024) -> draft_pb2.DrafterDescription:
    """Claims to work on ids alone, so that every target is content with it."""
    return draft_pb2.DrafterDescription(kind="prompt-lookup", max_sessions=max_sessions)


@dataclass(slots=True)
class GuessedSession:
    """What the drafters here remember of a session."""

    number: int
    tree: DraftTree
    depth: int

    def commit(self, commit: draft_pb2.Commit) -> None:
        with suppress(CommitGap):
            self.tree.commit(commit.base_length, commit.token_ids)
        if commit.HasField("limits"):
            self.depth = commit.limits.depth

    def chain(self, token_ids: Iterable[int]) -> draft_pb2.Grow:
        """A correct answer that extends the chain by these tokens."""
        path = self.tree.best_path()
        parent_id = path[-1].id if path else ROOT
        grow = draft_pb2.Grow(
            session=self.number, base_length=self.tree.committed_length, complete=True
        )
        for token_id in token_ids:
            first = not path and not grow.node_ids
            node = self.tree.add(parent_id, token_id, -1.0)
            grow.node_ids.append(node.id)
            grow.parent_ids.append(ROOT if first else parent_id)
            grow.token_ids.append(token_id)
            grow.log_probs.append(-1.0)
            parent_id = node.id
        return grow


class _BreakOff(Exception):
    """The drafter ends the link."""


class _Drafter(draft_pb2_grpc.DraftServiceServicer):
    """Reads the target's frames and answers each with what `answer` makes of it."""

    def __init__(self, *, seed: int) -> None:
        self.random = random.Random(seed)
        self.num_proposed = 0
        """Tokens sent, right or wrong."""
        self.num_links = 0

    async def Speculate(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.num_links += 1
        sessions: dict[int, GuessedSession] = {}
        vocab_size = 1
        async for frame in request_iterator:
            if frame.HasField("hello"):
                vocab_size = frame.hello.vocab_size
                for response in self.greet():
                    yield response
                continue
            changed = list(_changed(frame, sessions))
            try:
                for response in self.answer(changed, vocab_size):
                    self.num_proposed += sum(len(grow.token_ids) for grow in response.grows)
                    yield response
            except _BreakOff:
                await context.abort(grpc.StatusCode.INTERNAL, "the drafter breaks off")

    async def Describe(self, request: Any, context: Any) -> Any:
        return draft_pb2.DescribeResponse(
            min_protocol_version=MIN_PROTOCOL_VERSION,
            max_protocol_version=MAX_PROTOCOL_VERSION,
            drafter=description(),
        )

    def greet(self) -> Iterator[draft_pb2.SpeculateResponse]:
        welcome = draft_pb2.Welcome(protocol_version=PROTOCOL_VERSION, drafter=description())
        yield draft_pb2.SpeculateResponse(welcome=welcome)

    def answer(
        self, sessions: list[GuessedSession], vocab_size: int
    ) -> Iterator[draft_pb2.SpeculateResponse]:
        raise NotImplementedError


def _changed(
    frame: draft_pb2.SpeculateRequest, sessions: dict[int, GuessedSession]
) -> Iterator[GuessedSession]:
    for opened in frame.opens:
        sessions[opened.session] = GuessedSession(
            opened.session, DraftTree(opened.token_ids), opened.limits.depth
        )
        yield sessions[opened.session]
    for commit in frame.commits:
        if (session := sessions.get(commit.session)) is not None:
            session.commit(commit)
            yield session
    for close in frame.closes:
        sessions.pop(close.session, None)


class RandomDrafter(_Drafter):
    """Keeps to the protocol and proposes chains of random tokens.

    Args:
        seed: Of the guesses.
        familiar: Share of the guesses that are tokens of the text, which makes some come true.
    """

    def __init__(self, *, seed: int = 0, familiar: float = 0.5) -> None:
        super().__init__(seed=seed)
        self.familiar = familiar

    def answer(
        self, sessions: list[GuessedSession], vocab_size: int
    ) -> Iterator[draft_pb2.SpeculateResponse]:
        if not sessions:
            return
        yield draft_pb2.SpeculateResponse(
            grows=[
                session.chain(
                    self._guess(session, vocab_size)
                    for _ in range(session.depth - len(session.tree))
                )
                for session in sessions
            ]
        )

    def _guess(self, session: GuessedSession, vocab_size: int) -> int:
        if self.random.random() < self.familiar:
            return self.random.choice(session.tree.token_ids)
        return self.random.randrange(vocab_size)


class Greeting(StrEnum):
    """How a link begins."""

    CORRECT = "correct"
    NONE = "none"
    """Never answers the hello."""
    WRONG_VERSION = "wrong version"
    NOT_A_WELCOME = "not a welcome"
    """Grows something first."""


Attack = Callable[["AdversarialDrafter", GuessedSession, int], draft_pb2.SpeculateResponse | None]


class AdversarialDrafter(_Drafter):
    """Breaks every rule of the protocol in turn, in an order drawn from the seed.

    Args:
        seed: Of the order and of everything random.
        greeting: How links begin.
        ends_links: Whether ending the link is one of the attacks.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        greeting: Greeting = Greeting.CORRECT,
        ends_links: bool = True,
    ) -> None:
        super().__init__(seed=seed)
        self.greeting = greeting
        self.attacks: Counter[str] = Counter()
        """What was done how often, by name."""
        self.repertoire: list[str] = [name for name in ATTACKS if ends_links or name != "break_off"]
        self.random.shuffle(self.repertoire)
        self._turn = 0
        self._previous: draft_pb2.SpeculateResponse | None = None

    def greet(self) -> Iterator[draft_pb2.SpeculateResponse]:
        match self.greeting:
            case Greeting.CORRECT:
                yield from super().greet()
            case Greeting.WRONG_VERSION:
                yield draft_pb2.SpeculateResponse(
                    welcome=draft_pb2.Welcome(protocol_version=9999, drafter=description())
                )
            case Greeting.NOT_A_WELCOME:
                yield draft_pb2.SpeculateResponse(grows=[draft_pb2.Grow(session=1, complete=True)])
            case Greeting.NONE:
                pass

    def answer(
        self, sessions: list[GuessedSession], vocab_size: int
    ) -> Iterator[draft_pb2.SpeculateResponse]:
        for session in sessions:
            name = self.repertoire[self._turn % len(self.repertoire)]
            self._turn += 1
            self.attacks[name] += 1
            # What was sent before may have been dropped: each attack starts at the last token.
            session.tree = DraftTree(session.tree.token_ids, last_id=session.tree.last_id)
            if name == "break_off":
                raise _BreakOff
            if name == "repeat_a_frame":
                response = self._previous
            else:
                response = ATTACKS[name](self, session, vocab_size)
            if response is not None:
                self._previous = response
                yield response

    def plausible(self, session: GuessedSession, vocab_size: int) -> draft_pb2.Grow:
        """A correct answer, to be spoilt."""
        size = max(2, session.depth)
        return session.chain([self.random.randrange(vocab_size) for _ in range(size)])


def _frame(*grows: draft_pb2.Grow) -> draft_pb2.SpeculateResponse:
    return draft_pb2.SpeculateResponse(grows=grows)


def _ids_outside_the_vocabulary(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    grow.token_ids[:] = drafter.random.choices(
        [vocab_size, vocab_size + 1, 2**31, MAX_UINT32], k=len(grow.token_ids)
    )
    return _frame(grow)


def _unknown_parents(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    session.tree.last_id += 5  # nodes nobody has heard of
    grow = drafter.plausible(session, vocab_size)
    grow.parent_ids[:] = [grow.node_ids[0] - 3, *grow.parent_ids[1:]]
    return _frame(grow)


def _reused_ids(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    again = draft_pb2.Grow()
    again.CopyFrom(grow)
    again.token_ids[:] = [(token + 1) % vocab_size for token in grow.token_ids]
    return _frame(grow, again)


def _zero_and_descending_ids(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    grow.node_ids[:] = list(reversed(range(len(grow.node_ids))))
    return _frame(grow)


def _cycles(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    grow.parent_ids[:] = drafter.random.choices(
        [grow.node_ids[0], grow.node_ids[-1], MAX_UINT32], k=len(grow.node_ids)
    )
    return _frame(grow)


def _flood(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    return _frame(session.chain([drafter.random.randrange(vocab_size) for _ in range(20_000)]))


def _crowd_of_siblings(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = session.chain([drafter.random.randrange(vocab_size) for _ in range(5_000)])
    grow.parent_ids[:] = [0] * len(grow.node_ids)
    return _frame(grow)


def _wrong_sessions(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grows = []
    for number in (0, session.number + 1, session.number - 1, MAX_UINT64):
        grow = draft_pb2.Grow()
        grow.CopyFrom(drafter.plausible(session, vocab_size))
        grow.session = max(0, number)
        grows.append(grow)
    return _frame(*grows)


def _wrong_base(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    grow.base_length = drafter.random.choice([0, 1, session.tree.committed_length + 3, MAX_UINT32])
    return _frame(grow)


def _unequal_arrays(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    name = drafter.random.choice(["node_ids", "parent_ids", "token_ids", "log_probs"])
    grow.ClearField(name)  # type: ignore[arg-type]  # one of the fields' names
    return _frame(grow)


def _impossible_probabilities(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    grow.log_probs[:] = drafter.random.choices(
        [math.nan, math.inf, -math.inf, 5.0, -1e30], k=len(grow.log_probs)
    )
    return _frame(grow)


def _more_after_completion(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    return _frame(drafter.plausible(session, vocab_size), drafter.plausible(session, vocab_size))


def _refusal(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    refused = draft_pb2.Resync(session=session.number, refused=True, reason="\x1b[2J no\n" * 50)
    return draft_pb2.SpeculateResponse(resyncs=[refused])


def _amnesia(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    truth = session.tree.committed_length
    held = drafter.random.choice([0, 1, truth, truth + 9, MAX_UINT32])
    resync = draft_pb2.Resync(session=session.number, held_length=held)
    return draft_pb2.SpeculateResponse(resyncs=[resync, resync])


def _welcome_again(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    welcome = draft_pb2.Welcome(protocol_version=PROTOCOL_VERSION, drafter=description(1))
    return draft_pb2.SpeculateResponse(welcome=welcome)


def _empty_frame(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    return draft_pb2.SpeculateResponse()


def _silence(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse | None:
    return None


def _wrong_tokens(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    return _frame(drafter.plausible(session, vocab_size))


def _broken_distributions(
    drafter: AdversarialDrafter, session: GuessedSession, vocab_size: int
) -> draft_pb2.SpeculateResponse:
    grow = drafter.plausible(session, vocab_size)
    size = len(grow.node_ids)
    grow.distribution_sizes[:] = [2] * size
    grow.distribution_token_ids[:] = [
        token_id for drawn in grow.token_ids for token_id in (drawn, (drawn + 1) % vocab_size)
    ]
    weights = [1, 2] * size
    match drafter.random.randrange(6):
        case 0:
            grow.distribution_token_ids[1] = vocab_size
        case 1:
            grow.distribution_token_ids[1] = grow.distribution_token_ids[0]
        case 2:
            grow.distribution_token_ids[0] = (grow.token_ids[0] + 2) % vocab_size
        case 3:
            weights[0] = 0
        case 4:
            grow.distribution_sizes[0] = drafter.random.choice([1, 3, MAX_UINT32])
        case 5:
            weights.pop()
    grow.distribution_weights = struct.pack(f"<{len(weights)}H", *weights)
    return _frame(grow)


ATTACKS: dict[str, Attack] = {
    "ids_outside_the_vocabulary": _ids_outside_the_vocabulary,
    "unknown_parents": _unknown_parents,
    "reused_ids": _reused_ids,
    "zero_and_descending_ids": _zero_and_descending_ids,
    "cycles": _cycles,
    "flood": _flood,
    "crowd_of_siblings": _crowd_of_siblings,
    "wrong_sessions": _wrong_sessions,
    "wrong_base": _wrong_base,
    "unequal_arrays": _unequal_arrays,
    "broken_distributions": _broken_distributions,
    "impossible_probabilities": _impossible_probabilities,
    "more_after_completion": _more_after_completion,
    "refusal": _refusal,
    "amnesia": _amnesia,
    "welcome_again": _welcome_again,
    "empty_frame": _empty_frame,
    "silence": _silence,
    "wrong_tokens": _wrong_tokens,
    "repeat_a_frame": _silence,  # done by the drafter itself, which remembers the frame
    "break_off": _silence,  # likewise: it ends the call
}
"""What the adversary does, by name."""


@dataclass(slots=True)
class Serving:
    """A drafter of this module that listens."""

    drafter: RandomDrafter | AdversarialDrafter
    port: int
    server: grpc.aio.Server = field(repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(drafter: RandomDrafter | AdversarialDrafter) -> AsyncIterator[Serving]:
    """Serve a drafter on a free loopback port of this event loop."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), MAY_PING])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(drafter, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Serving(drafter, port, server)
    finally:
        async with asyncio.timeout(20):
            await server.stop(0)
