"""Requests as messages, and what comes back, checked against the contract as it is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from outrider.v1 import generation_pb2 as pb
from outrider.v1 import speculation_pb2, tensors_pb2
from outrider_contract.generation_config import from_json_dict
from service.tiny_folder import ids_of

Config = dict[str, Any]
"""Fields of GenerationConfig in transformers' JSON form."""

PLAIN = speculation_pb2.SpeculationConfig(enabled=False)
LOOKUP = speculation_pb2.SpeculationConfig(method=speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP)

ENDLESS = ("eos_token_id",)
"""Cleared, nothing but a limit ends a text."""


def ask(
    prompt: str | Sequence[int] = "once upon a time",
    *,
    seed: int | None = None,
    speculation: speculation_pb2.SpeculationConfig | None = None,
    request_id: str = "",
    skip_special_tokens: bool | None = None,
    clear: Iterable[str] = ENDLESS,
    **config: Any,
) -> pb.GenerateRequest:
    """A request; `config` are fields of GenerationConfig in transformers' JSON form."""
    message = from_json_dict(config)
    message.clear_fields.extend(name for name in clear if name not in config)
    request = pb.GenerateRequest(
        generation_config=message,
        speculation=speculation,
        seed=seed,
        request_id=request_id,
        skip_special_tokens=skip_special_tokens,
    )
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    return request


def emitting(text: str, *, after: str = "") -> Config:
    """Fields that make any model write `text` over and over.

    Args:
        text: No byte occurs twice in it.
        after: Last character of the prompt when it is not that of `text`.
    """
    letters = ids_of(text)
    assert len({*letters, *ids_of(after)}) == len(letters) + len(ids_of(after))
    chain = list(zip(letters, [*letters[1:], letters[0]], strict=True))
    if after:
        chain.append((ids_of(after)[-1], letters[0]))
    return {"sequence_bias": [[list(pair), 1e6] for pair in chain]}


@dataclass
class Part:
    """One sequence of an answer."""

    token_ids: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    tensors: list[tensors_pb2.TensorPart] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class Answer:
    """All messages of a stream."""

    started: pb.GenerationStarted
    parts: list[Part]
    complete: pb.GenerateComplete

    @property
    def token_ids(self) -> list[int]:
        return self.parts[0].token_ids

    @property
    def text(self) -> str:
        return self.parts[0].text

    @property
    def finish_reasons(self) -> list[str]:
        return [
            pb.FinishReason.Name(result.finish_reason).removeprefix("FINISH_REASON_")
            for result in self.complete.sequences
        ]


def collect(call: Iterable[pb.GenerateResponse]) -> Answer:
    """Read a stream to its end. Its form must be what the contract promises."""
    messages = list(call)
    first, *chunks, last = messages
    assert first.chunk.HasField("started")
    assert not first.chunk.token_ids
    assert last.WhichOneof("response") == "complete"
    count = first.chunk.started.effective_config.num_return_sequences or 1
    parts = [Part() for _ in range(count)]
    for message in chunks:
        if message.HasField("beam_progress"):
            assert not any(part.token_ids for part in parts), "looks come before what is final"
            continue
        assert message.WhichOneof("response") == "chunk"
        chunk = message.chunk
        assert not chunk.HasField("started")
        assert chunk.token_ids or chunk.text or chunk.tensors, "an empty chunk says nothing"
        assert len(chunk.drafted) == len(chunk.token_ids)
        part = parts[chunk.sequence_index]
        part.token_ids += chunk.token_ids
        part.drafted += chunk.drafted
        part.pieces.append(chunk.text)
        part.tensors += chunk.tensors
    answer = Answer(first.chunk.started, parts, last.complete)
    _add_up(answer)
    return answer


def _add_up(answer: Answer) -> None:
    results, usage, stats = (
        answer.complete.sequences,
        answer.complete.usage,
        answer.complete.speculation,
    )
    assert [result.sequence_index for result in results] == list(range(len(answer.parts)))
    for part, result in zip(answer.parts, results, strict=True):
        assert result.num_completion_tokens == len(part.token_ids)
        assert result.finish_reason != pb.FINISH_REASON_UNSPECIFIED
    assert usage.completion_tokens == sum(len(part.token_ids) for part in answer.parts)
    assert usage.prompt_tokens == answer.started.num_prompt_tokens
    assert 0 <= usage.queue_seconds <= usage.time_to_first_token_seconds <= usage.total_seconds
    if results[0].HasField("beam"):  # steps of a search are counted, not tokens of what it found
        assert not any(any(part.drafted) for part in answer.parts)
    else:
        assert stats.num_accepted_tokens == sum(sum(part.drafted) for part in answer.parts)
    assert sum(stats.num_accepted_tokens_per_pos) == stats.num_accepted_tokens
    assert stats.num_accepted_tokens <= stats.num_draft_tokens
    assert (stats.num_drafts > 0) == (stats.num_draft_tokens > 0)
    # A round adds one token of the target's own; the one that a stop cut short may not.
    assert (
        0
        <= stats.num_rounds + stats.num_accepted_tokens - usage.completion_tokens
        <= len(answer.parts)
    )
