"""From the messages of a stream to chunks and a completion.

Knows nothing of calls, retries, threads and event loops: both clients feed it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.v1 import generation_pb2, tensors_pb2
from outrider_contract.generation_config import ConfigValueError

from outrider_client._completion import (
    BeamProgress,
    Chunk,
    Completion,
    FinishReason,
    GeneratedSequence,
    HealedPrompt,
    Started,
)
from outrider_client._generation_config import GenerationConfig
from outrider_client._log_probs import TokenLogProbs
from outrider_client._speculation_config import SpeculationConfig
from outrider_client._tensor_assembly import TensorParts
from outrider_client._tensors import attentions, hidden_states
from outrider_client._usage import SpeculationStats, Usage

_FINISH_REASONS = {
    generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_TIME: FinishReason.TIME,
    generation_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}


class ProtocolError(Exception):
    """The server's messages do not follow the contract."""


@dataclass(slots=True)
class _Growing:
    """What has arrived of one sequence."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    tensors: TensorParts = field(default_factory=TensorParts)


class Assembly:
    """Everything that has arrived of one stream."""

    __slots__ = ("_growing", "_results", "final", "started")

    def __init__(self) -> None:
        self.started: Started | None = None
        self.final: Completion | None = None
        self._growing: dict[int, _Growing] = {}
        self._results: dict[int, generation_pb2.SequenceResult] = {}

    def start(self, message: generation_pb2.GenerateResponse) -> Started:
        """Takes the first message.

        Raises:
            ProtocolError: It does not carry `started`, or what it carries cannot be read.
        """
        if not message.HasField("chunk") or not message.chunk.HasField("started"):
            raise ProtocolError("the first message of the stream does not carry `started`")
        started = message.chunk.started
        try:
            effective_config = GenerationConfig.from_message(started.effective_config)
        except ConfigValueError as error:
            raise ProtocolError(f"the effective configuration cannot be read: {error}") from None
        self.started = Started(
            request_id=started.request_id,
            seed=started.seed,
            effective_config=effective_config,
            effective_speculation=SpeculationConfig.from_message(started.effective_speculation),
            num_prompt_tokens=started.num_prompt_tokens,
            healed_prompt=HealedPrompt(
                list(started.healed_prompt.token_ids), started.healed_prompt.text
            )
            if started.HasField("healed_prompt")
            else None,
        )
        return self.started

    def take(self, message: generation_pb2.GenerateResponse) -> Chunk | BeamProgress | None:
        """Takes a further message; returns what of it is to be handed out, if anything.

        Raises:
            ProtocolError: It is about a sequence that was not asked for.
        """
        if message.HasField("complete"):
            self._finish(message.complete)
            return None
        if message.HasField("beam_progress"):
            progress = message.beam_progress
            return BeamProgress(
                progress.text, list(progress.token_ids), progress.score, progress.finished
            )
        if not message.HasField("chunk"):
            return None  # a kind of message of a newer server
        chunk = Chunk(
            text=message.chunk.text,
            token_ids=list(message.chunk.token_ids),
            drafted=list(message.chunk.drafted),
            sequence_index=message.chunk.sequence_index,
            log_probs=list(map(TokenLogProbs.from_message, message.chunk.log_probs)),
        )
        if not chunk.token_ids and not chunk.text and not message.chunk.tensors:
            return None
        if chunk.sequence_index >= self._num_sequences():
            raise ProtocolError(
                f"tokens of sequence {chunk.sequence_index}, which was not asked for"
            )
        growing = self._growing.setdefault(chunk.sequence_index, _Growing())
        growing.texts.append(chunk.text)
        growing.token_ids.extend(chunk.token_ids)
        growing.drafted.extend(chunk.drafted)
        growing.log_probs.extend(chunk.log_probs)
        try:
            growing.tensors.take(message.chunk.tensors)
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        return chunk if chunk.token_ids or chunk.text else None

    def partial(self) -> Completion | None:
        """What has arrived so far; None before the first message."""
        if self.started is None:
            return None
        if self.final is not None:
            return self.final
        generated = sum(len(growing.token_ids) for growing in self._growing.values())
        usage = Usage(prompt_tokens=self.started.num_prompt_tokens, completion_tokens=generated)
        return self._completion(self.started, usage, SpeculationStats())

    def _finish(self, complete: generation_pb2.GenerateComplete) -> None:
        if self.started is None:
            raise ProtocolError("the stream completed before it started")
        self._results = {result.sequence_index: result for result in complete.sequences}
        self.final = self._completion(
            self.started,
            Usage.from_message(complete.usage),
            SpeculationStats.from_message(complete.speculation),
        )

    def _completion(self, started: Started, usage: Usage, stats: SpeculationStats) -> Completion:
        return Completion(
            request_id=started.request_id,
            sequences=tuple(self._sequence(index) for index in range(self._num_sequences())),
            usage=usage,
            seed=started.seed,
            effective_config=started.effective_config,
            effective_speculation=started.effective_speculation,
            speculation=stats,
            healed_prompt=started.healed_prompt,
        )

    def _num_sequences(self) -> int:
        asked = self.started and self.started.effective_config.num_return_sequences
        return asked or 1

    def _sequence(self, index: int) -> GeneratedSequence:
        growing = self._growing.get(index, _Growing())
        result = self._results.get(index, generation_pb2.SequenceResult())
        tensors = growing.tensors
        num_prompt_tokens = self.started.num_prompt_tokens if self.started else 0
        return GeneratedSequence(
            text="".join(growing.texts),
            token_ids=list(growing.token_ids),
            drafted=list(growing.drafted),
            log_probs=list(growing.log_probs),
            scores=tensors.of(tensors_pb2.TENSOR_KIND_SCORES),
            logits=tensors.of(tensors_pb2.TENSOR_KIND_LOGITS),
            hidden_states=hidden_states(
                tensors.of(tensors_pb2.TENSOR_KIND_HIDDEN_STATES), num_prompt_tokens
            ),
            attentions=attentions(
                tensors.of(tensors_pb2.TENSOR_KIND_ATTENTIONS), num_prompt_tokens
            ),
            finish_reason=_FINISH_REASONS.get(result.finish_reason),
            matched_stop_string=(
                result.matched_stop_string if result.HasField("matched_stop_string") else None
            ),
            matched_stop_token_id=(
                result.matched_stop_token_id if result.HasField("matched_stop_token_id") else None
            ),
            matched_stopping_criterion=(
                result.matched_stopping_criterion
                if result.HasField("matched_stopping_criterion")
                else None
            ),
            score=result.beam.score if result.HasField("beam") else None,
            beam_indices=list(result.beam.beam_indices),
        )
