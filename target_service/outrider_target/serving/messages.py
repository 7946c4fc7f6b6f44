"""From the domain to the wire: what the servicer answers with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from outrider.v1 import (
    explanation_pb2,
    generation_pb2,
    log_probs_pb2,
    plugins_pb2,
    speculation_pb2,
    tensors_pb2,
)
from outrider_runtime.model.log_probs import TokenLogProb, TokenLogProbs
from outrider_runtime.prompt_lookup import LookupRule

from outrider_target.capabilities import CAPABILITIES, Support
from outrider_target.decoding.beams.beam import BeamScore
from outrider_target.decoding.tensors import TokenTensor
from outrider_target.drafting.remote.link import DraftLink, LinkStatus
from outrider_target.drafting.remote.link_state import LinkState
from outrider_target.drafting.silence import Silence
from outrider_target.engine.events import BeamProgress, RequestCompleted
from outrider_target.engine.explanation import Figures, explain
from outrider_target.engine.statistics import SpeculationCounters
from outrider_target.plugins import Plugin, PluginKind
from outrider_target.requests.request import (
    DraftMethod,
    Finish,
    FinishReason,
    GenerationRequest,
    SpeculationSettings,
    TensorKind,
)

_FINISH_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.TIME: generation_pb2.FINISH_REASON_TIME,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
}
_METHODS = {
    DraftMethod.NONE: speculation_pb2.DRAFT_METHOD_NONE,
    DraftMethod.REMOTE: speculation_pb2.DRAFT_METHOD_REMOTE,
    DraftMethod.PROMPT_LOOKUP: speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP,
    DraftMethod.COMBINED: speculation_pb2.DRAFT_METHOD_COMBINED,
    DraftMethod.EARLY_EXIT: speculation_pb2.DRAFT_METHOD_EARLY_EXIT,
    DraftMethod.GRAMMAR: speculation_pb2.DRAFT_METHOD_GRAMMAR,
    DraftMethod.SUFFIX: speculation_pb2.DRAFT_METHOD_SUFFIX,
    DraftMethod.PREDICTION: speculation_pb2.DRAFT_METHOD_PREDICTION,
}

_LOOKUP_RULES = {
    LookupRule.LATEST: speculation_pb2.LOOKUP_RULE_LATEST,
    LookupRule.FIRST: speculation_pb2.LOOKUP_RULE_FIRST,
}
_LINK_STATES = {
    LinkStatus.CONNECTING: generation_pb2.DRAFT_LINK_STATE_CONNECTING,
    LinkStatus.READY: generation_pb2.DRAFT_LINK_STATE_READY,
    LinkStatus.REFUSED: generation_pb2.DRAFT_LINK_STATE_REFUSED,
}
_SILENCES = {
    silence: explanation_pb2.DraftSilence.Value(f"DRAFT_SILENCE_{silence.name}")
    for silence in Silence
}
_PLUGIN_KINDS = {
    PluginKind.LOGITS_PROCESSOR: plugins_pb2.PLUGIN_KIND_LOGITS_PROCESSOR,
    PluginKind.STOPPING_CRITERION: plugins_pb2.PLUGIN_KIND_STOPPING_CRITERION,
}
_SUPPORT = {
    Support.HONOURED: generation_pb2.FIELD_SUPPORT_HONOURED,
    Support.REFUSED: generation_pb2.FIELD_SUPPORT_REFUSED,
}
_TENSOR_KINDS = {
    TensorKind.SCORES: tensors_pb2.TENSOR_KIND_SCORES,
    TensorKind.LOGITS: tensors_pb2.TENSOR_KIND_LOGITS,
    TensorKind.HIDDEN_STATES: tensors_pb2.TENSOR_KIND_HIDDEN_STATES,
    TensorKind.ATTENTIONS: tensors_pb2.TENSOR_KIND_ATTENTIONS,
}
_TENSOR_DTYPES = {
    torch.float32: tensors_pb2.TENSOR_DTYPE_FLOAT32,
    torch.float64: tensors_pb2.TENSOR_DTYPE_FLOAT64,
    torch.float16: tensors_pb2.TENSOR_DTYPE_FLOAT16,
    torch.bfloat16: tensors_pb2.TENSOR_DTYPE_BFLOAT16,
}
_MAX_PART_BYTES = 2**20
"""Of tensors in a message; gRPC clients take 4 MiB."""


def started(
    request: GenerationRequest, healed: str | None = None
) -> generation_pb2.GenerateResponse:
    """The first chunk. `healed`: the text of the prompt in use, where it was rewritten."""
    message = generation_pb2.GenerationStarted(
        request_id=request.id,
        seed=request.seed,
        effective_config=request.effective_config,
        effective_speculation=_speculation(request.speculation),
        num_prompt_tokens=len(request.prompt),
    )
    if healed is not None:
        message.healed_prompt.text = healed
        message.healed_prompt.token_ids.extend(request.prompt)
    return generation_pb2.GenerateResponse(chunk=generation_pb2.GenerateChunk(started=message))


def sequence_result(
    index: int, finish: Finish, num_completion_tokens: int, beam: BeamScore | None
) -> generation_pb2.SequenceResult:
    """How a sequence ended."""
    return generation_pb2.SequenceResult(
        sequence_index=index,
        finish_reason=_FINISH_REASONS[finish.reason],
        matched_stop_string=finish.stop_string,
        matched_stop_token_id=finish.stop_token_id,
        matched_stopping_criterion=finish.criterion,
        num_completion_tokens=num_completion_tokens,
        beam=None
        if beam is None
        else generation_pb2.BeamResult(score=beam.score, beam_indices=beam.beam_indices),
    )


def beam_progress(progress: BeamProgress, text: str) -> generation_pb2.GenerateResponse:
    """The best hypothesis of a beam search so far."""
    return generation_pb2.GenerateResponse(
        beam_progress=generation_pb2.BeamProgress(
            token_ids=progress.token_ids,
            text=text,
            score=progress.score,
            finished=progress.finished,
        )
    )


def complete(
    request: GenerationRequest,
    results: list[generation_pb2.SequenceResult],
    end: RequestCompleted,
) -> generation_pb2.GenerateResponse:
    """The last message."""
    return generation_pb2.GenerateResponse(
        complete=generation_pb2.GenerateComplete(
            sequences=sorted(results, key=lambda result: result.sequence_index),
            usage=generation_pb2.Usage(
                prompt_tokens=len(request.prompt),
                completion_tokens=end.num_completion_tokens,
                queue_seconds=end.queue_seconds,
                time_to_first_token_seconds=end.time_to_first_token_seconds,
                total_seconds=end.total_seconds,
                num_preemptions=end.num_preemptions,
                cached_prompt_tokens=end.num_cached_prompt_tokens,
            ),
            speculation=speculation_stats(end.speculation),
        )
    )


def speculation_stats(counters: SpeculationCounters) -> speculation_pb2.SpeculationStats:
    """What speculation did."""
    return speculation_pb2.SpeculationStats(
        num_drafts=counters.num_drafts,
        num_draft_tokens=counters.num_draft_tokens,
        num_accepted_tokens=counters.num_accepted_tokens,
        num_accepted_tokens_per_pos=counters.num_accepted_tokens_per_pos,
        mean_acceptance_length=counters.mean_acceptance_length,
        draft_acceptance_rate=counters.draft_acceptance_rate,
        num_rounds=counters.num_rounds,
        num_plain_rounds=counters.num_plain_rounds,
        rounds=[
            speculation_pb2.SpeculationRound(num_draft_tokens=drafted, num_accepted_tokens=accepted)
            for drafted, accepted in counters.rounds
        ],
        drafters=[
            speculation_pb2.DrafterStats(
                method=_METHODS[method],
                num_drafts=share.num_drafts,
                num_draft_tokens=share.num_draft_tokens,
                num_accepted_tokens=share.num_accepted_tokens,
            )
            for method, share in counters.by_method.items()
        ],
    )


def token_log_probs(known: TokenLogProbs) -> log_probs_pb2.TokenLogProbs:
    """What is known of a token."""
    return log_probs_pb2.TokenLogProbs(
        raw=known.raw,
        processed=known.processed,
        score=known.score,
        top_raw=map(_token_log_prob, known.top_raw),
        top_processed=map(_token_log_prob, known.top_processed),
    )


def tensor_chunks(
    sequence_index: int, tensors: Sequence[TokenTensor]
) -> Iterator[generation_pb2.GenerateResponse]:
    """Messages that hold nothing but tensors, each of bounded size."""
    parts: list[tensors_pb2.TensorPart] = []
    size = 0
    for part in (part for tensor in tensors for part in _tensor_parts(tensor)):
        if size + len(part.data) > _MAX_PART_BYTES:
            yield _tensor_chunk(sequence_index, parts)
            parts, size = [], 0
        parts.append(part)
        size += len(part.data)
    if parts:
        yield _tensor_chunk(sequence_index, parts)


def _tensor_chunk(
    sequence_index: int, parts: Sequence[tensors_pb2.TensorPart]
) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        chunk=generation_pb2.GenerateChunk(sequence_index=sequence_index, tensors=parts)
    )


def _tensor_parts(tensor: TokenTensor) -> Iterator[tensors_pb2.TensorPart]:
    data = tensor.values.contiguous().flatten().view(torch.uint8).numpy()
    for offset in range(0, len(data), _MAX_PART_BYTES):
        yield tensors_pb2.TensorPart(
            kind=_TENSOR_KINDS[tensor.kind],
            index=tensor.index,
            dtype=_TENSOR_DTYPES[tensor.values.dtype],
            shape=tensor.values.shape,
            offset=offset,
            data=data[offset : offset + _MAX_PART_BYTES].tobytes(),
        )


def link_info(link: DraftLink, state: LinkState | None) -> generation_pb2.DraftLinkInfo:
    """The state of a link; None: the engine has not heard of it yet."""
    return generation_pb2.DraftLinkInfo(
        address=link.address,
        state=_LINK_STATES[link.status],
        reason=link.reason,
        kind=link.kind,
        num_sessions=len(state.sessions) if state else 0,
        latency_seconds=state.pace.latency if state else 0.0,
        num_offences=state.offences if state else 0,
    )


def explanation(figures: Figures) -> explanation_pb2.ExplainResponse:
    """What limits the speed."""
    recent = figures.recent
    return explanation_pb2.ExplainResponse(
        num_rounds=recent.num_rounds,
        num_sequence_rounds=recent.num_sequence_rounds,
        num_drafts=recent.num_drafts,
        num_draft_tokens=recent.num_draft_tokens,
        num_accepted_tokens=recent.num_accepted_tokens,
        num_tokens=recent.num_tokens,
        forward_seconds=recent.forward_seconds,
        between_seconds=recent.between_seconds,
        silences=[
            explanation_pb2.DraftSilenceCount(reason=_SILENCES[silence], num_sequence_rounds=count)
            for silence, count in recent.silences
        ],
        answer_seconds=figures.answer_seconds,
        asking_cost_ratio=figures.asking_cost_ratio,
        speedup_ratio=figures.speedup_ratio,
        findings=[
            explanation_pb2.Finding(seen=finding.seen, advice=finding.advice)
            for finding in explain(figures)
        ],
    )


def capabilities() -> list[generation_pb2.FieldCapability]:
    """The capability table."""
    return [
        generation_pb2.FieldCapability(field=name, support=_SUPPORT[c.support], note=c.note)
        for name, c in CAPABILITIES.items()
    ]


def plugins(offered: Iterable[Plugin]) -> list[plugins_pb2.PluginInfo]:
    """The plug-ins on offer."""
    return [
        plugins_pb2.PluginInfo(name=p.name, kind=_PLUGIN_KINDS[p.kind], summary=p.summary)
        for p in offered
    ]


def _token_log_prob(known: TokenLogProb) -> log_probs_pb2.TokenLogProb:
    return log_probs_pb2.TokenLogProb(token_id=known.token_id, log_prob=known.log_prob)


def _speculation(settings: SpeculationSettings) -> speculation_pb2.SpeculationConfig:
    return speculation_pb2.SpeculationConfig(
        enabled=settings.method is not DraftMethod.NONE,
        method=_METHODS[settings.method],
        verification=speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING
        if settings.by_ratio
        else speculation_pb2.VERIFICATION_EXACT,
        pacing=speculation_pb2.DRAFT_PACING_SYNCHRONOUS
        if settings.synchronous
        else speculation_pb2.DRAFT_PACING_ADAPTIVE,
        max_assistant_tokens=settings.max_window,
        run_ahead=settings.run_ahead,
        draft_fan_out=settings.fan_out,
        draft_tree_rows=settings.tree_rows,
        draft_timeout_ms=round(settings.timeout_seconds * 1000),
        draft_temperature=settings.draft_temperature,
        report_rounds=settings.report_rounds,
        lookup_rule=_LOOKUP_RULES[settings.lookup_rule],
    )
