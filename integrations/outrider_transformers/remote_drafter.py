"""A link to a draft service for callers that wait: plain threads, no event loop."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence

import grpc
import structlog
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.draft_tree import DraftTree, Limits, Proposal
from outrider_runtime.tokenizer import fingerprint
from transformers import PreTrainedTokenizerFast

log = structlog.get_logger()

_HANDSHAKE_SECONDS = 5.0
_REFUSALS = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class DrafterRefused(Exception):
    """The draft service does not fit this model; the text says why."""


class RemoteDrafter:
    """A draft service, for any number of generations, one after the other or in threads.

    A service that cannot be reached, answers late or dies costs speed alone: nothing is proposed,
    and the next generation connects again.
    """

    def __init__(
        self,
        address: str,
        *,
        vocab_size: int,
        tokenizer: PreTrainedTokenizerFast | None = None,
        timeout: float = 1.0,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
    ) -> None:
        """Nothing is sent before the first generation.

        Args:
            address: Where it listens, host:port.
            vocab_size: Token ids that the target model can emit.
            tokenizer: The target model's; a draft model must have the same. None suits services
                without a model only.
            timeout: Longest wait for a draft, in seconds.
            credentials: For TLS; None: none.
            api_key: What the service knows its callers by; None: nothing.
        """
        self.timeout = timeout
        self.vocab_size = vocab_size
        self._hello = draft_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            tokenizer_fingerprint="" if tokenizer is None else fingerprint(tokenizer),
            model_id="transformers",
            vocab_size=vocab_size,
        )
        self._channel = (
            grpc.insecure_channel(address)
            if credentials is None
            else grpc.secure_channel(address, credentials)
        )
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else None
        self._link: _Link | None = None
        self._lock = threading.Lock()

    def open(
        self, token_ids: Sequence[int], config: GenerationConfig, limits: Limits
    ) -> RemoteDraft:
        """Begin to draft for a sequence.

        Args:
            token_ids: The prompt.
            config: The options that its scores are processed with.
            limits: How far to go.

        Raises:
            DrafterRefused: The service does not fit.
        """
        link = self._connected()
        return RemoteDraft(link, token_ids, config, limits, self.vocab_size)

    def close(self) -> None:
        """Close the link for good."""
        self._channel.close()

    def _connected(self) -> _Link | None:
        with self._lock:
            if self._link is None or self._link.ended:
                self._link = _Link.to(self._channel, self._hello, self._metadata)
            return self._link


class RemoteDraft:
    """One sequence: its copy of the tree, and what it asks of the link."""

    def __init__(
        self,
        link: _Link | None,
        token_ids: Sequence[int],
        config: GenerationConfig,
        limits: Limits,
        vocab_size: int,
    ) -> None:
        """Made by `RemoteDrafter.open`."""
        self._link = link
        self._config = config
        self._vocab_size = vocab_size
        self._num_prompt_tokens = len(token_ids)
        self._tree = DraftTree(token_ids)
        self._complete_at = -1
        self._lost = True  # the drafter knows nothing of it yet
        self._number = 0 if link is None else link.add(self)
        self._limits = limits

    def propose(self, token_ids: Sequence[int], limits: Limits, timeout: float) -> list[int]:
        """Tokens that may follow.

        Args:
            token_ids: The whole sequence: what was given before, with what was decided since.
            limits: How far to go from here.
            timeout: Longest wait, in seconds. What has come by then is taken.

        Returns:
            At most `limits.window` tokens.
        """
        link = self._link
        if link is None or link.ended:
            return []
        with link.news:
            self._limits = limits
            frame = self._told(token_ids)
            link.send(frame)
            link.news.wait_for(lambda: link.ended or self._answered, timeout)
            return [node.token_id for node in self._tree.best_path(limits.window)]

    def close(self) -> None:
        """Forget the sequence on both sides."""
        if self._link is not None:
            self._link.remove(self._number)

    def grow(self, grow: draft_pb2.Grow) -> None:
        """Take in proposals; what breaks the protocol is dropped."""
        arrays = (grow.node_ids, grow.parent_ids, grow.token_ids, grow.log_probs)
        self._tree.grow(
            grow.base_length,
            [Proposal(*node) for node in zip(*arrays, strict=False)],
            vocab_size=self._vocab_size,
            max_nodes=self._limits.max_nodes,
        )
        if grow.complete:
            self._complete_at = grow.base_length

    def resync(self, resync: draft_pb2.Resync) -> None:
        """The drafter holds less: the next question opens the session anew."""
        self._lost = True
        self._complete_at = self._tree.committed_length
        if resync.refused:
            log.warning("draft_session_refused", reason=resync.reason)
            self.close()
            self._link = None

    @property
    def _answered(self) -> bool:
        if self._complete_at == self._tree.committed_length:
            return True
        return len(self._tree.best_path(self._limits.window)) >= self._limits.window

    def _told(self, token_ids: Sequence[int]) -> draft_pb2.SpeculateRequest:
        """Walk the tree along what was decided, and say it."""
        held = self._tree.committed_length
        limits = draft_pb2.Limits(**self._limits._asdict())
        followed = list(token_ids[:held]) == self._tree.token_ids
        if followed and not self._lost:
            decided = list(token_ids[held:])
            self._tree.commit(held, decided)
            commit = draft_pb2.Commit(
                session=self._number, base_length=held, token_ids=decided, limits=limits
            )
            return draft_pb2.SpeculateRequest(commits=[commit])
        self._tree = DraftTree(token_ids, last_id=self._tree.last_id)
        self._complete_at = -1
        self._lost = False
        opened = draft_pb2.Open(
            session=self._number,
            token_ids=token_ids,
            num_prompt_tokens=min(self._num_prompt_tokens, len(token_ids)),
            generation_config=self._config,
            limits=limits,
        )
        return draft_pb2.SpeculateRequest(opens=[opened])


class _Link:
    """One stream. `news` guards the drafts on it and is told of every frame."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...] | None) -> None:
        self.news = threading.Condition()
        self.ended = False
        self._outbox: queue.SimpleQueue[draft_pb2.SpeculateRequest | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._drafts: dict[int, RemoteDraft] = {}
        stub: draft_pb2_grpc.DraftServiceStub = draft_pb2_grpc.DraftServiceStub(channel)
        self._call = stub.Speculate(self._frames(), metadata=metadata)

    @classmethod
    def to(
        cls,
        channel: grpc.Channel,
        hello: draft_pb2.Hello,
        metadata: tuple[tuple[str, str], ...] | None,
    ) -> _Link | None:
        """Connect and shake hands; None when there is nobody. Raises `DrafterRefused`."""
        try:
            grpc.channel_ready_future(channel).result(timeout=_HANDSHAKE_SECONDS)
            link = cls(channel, metadata)
            link.send(draft_pb2.SpeculateRequest(hello=hello))
            next(link._call)  # the welcome
        except grpc.FutureTimeoutError:
            log.warning("draft_link_down", reason="the draft service cannot be reached")
            return None
        except StopIteration:
            log.warning("draft_link_down", reason="the draft service closed the link")
            return None
        except grpc.RpcError as error:
            if error.code() in _REFUSALS:
                raise DrafterRefused(error.details()) from error
            log.warning("draft_link_down", reason=error.details())
            return None
        threading.Thread(target=link._read, name="draft-link", daemon=True).start()
        return link

    def add(self, draft: RemoteDraft) -> int:
        """Take a draft in; returns its number."""
        with self.news:
            number = next(self._numbers)
            self._drafts[number] = draft
            return number

    def remove(self, number: int) -> None:
        """Forget a draft on both sides."""
        with self.news:
            if self._drafts.pop(number, None) is not None:
                close = draft_pb2.Close(session=number)
                self.send(draft_pb2.SpeculateRequest(closes=[close]))

    def send(self, frame: draft_pb2.SpeculateRequest) -> None:
        """Put a frame on its way; never waits."""
        self._outbox.put(frame)

    def _frames(self) -> Iterator[draft_pb2.SpeculateRequest]:
        while (frame := self._outbox.get()) is not None:
            yield frame

    def _read(self) -> None:
        try:
            for frame in self._call:
                with self.news:
                    self._take(frame)
                    self.news.notify_all()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                log.warning("draft_link_down", reason=error.details())
        with self.news:
            self.ended = True
            self.news.notify_all()
        self._outbox.put(None)

    def _take(self, frame: draft_pb2.SpeculateResponse) -> None:
        for grow in frame.grows:
            if (draft := self._drafts.get(grow.session)) is not None:
                draft.grow(grow)
        for resync in frame.resyncs:
            if (draft := self._drafts.get(resync.session)) is not None:
                draft.resync(resync)
