"""Drafts accepted by ratio: the law of what whole engines write, both of them, over the wire."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.tiny_models import build_tiny
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_draft import model_proposer
from outrider_draft.metrics import DraftMetrics
from outrider_draft.model_proposer import ModelProposer
from outrider_draft.proposer import Description
from outrider_runtime.model import drawing
from outrider_runtime.model.noise import NoiseRow, Stream, gumbel_of
from outrider_runtime.model.ragged_runner import RaggedRunner
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_target.decoding import speculative_sampling
from outrider_target.decoding.block_verification import Place, Verdict, weigh
from outrider_target.decoding.drawn_rows import DrawnRows, DrawnToken
from outrider_target.decoding.speculative_sampling import decide_by_ratio
from outrider_target.drafting.drafter import Draft
from outrider_target.drafting.remote.remote_session import RemoteSession
from outrider_target.engine.statistics import SpeculationCounters
from outrider_target.requests.request import GenerationRequest
from prometheus_client import CollectorRegistry
from sampling.chi_square import FALSE_ALARM, p_value
from target.batch import SPECULATION, Batch, request
from target.wired_drafter import WiredDrafter
from transformers import PreTrainedModel

VOCAB_SIZE = 3
PROMPT = (1, 2, 0)
DEPTH = 4
"""Tokens whose joint law is compared. The first is decided before anything is drafted."""

BY_RATIO = dataclasses.replace(
    SPECULATION, by_ratio=True, window=DEPTH - 1, run_ahead=2, timeout_seconds=0.0
)

Text = tuple[int, ...]
Models = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(scope="module")
def models() -> Models:
    """A target and a draft of it: right often, not always."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    target, draft = (
        build_tiny("llama", vocab_size=VOCAB_SIZE, dtype=torch.float64, **size) for _ in range(2)
    )
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            shape, dtype = parameter.shape, parameter.dtype
            spread = 1.2 * parameter.std() if parameter.ndim > 1 else 0.0
            parameter.add_(spread * torch.randn(shape, generator=noise, dtype=dtype))
    return target, draft


def runner(model: PreTrainedModel) -> RaggedRunner:
    """An engine's runner, which takes a model over."""
    return RaggedRunner(copy.deepcopy(model), num_blocks=2048, block_size=4)


def sampled(seed: int, **options: Any) -> GenerationRequest:
    """A request whose options both sides know."""
    config = GenerationConfig(do_sample=True, max_new_tokens=DEPTH + 1, **options)
    speculation = options.pop("speculation", BY_RATIO)
    generation = request(
        PROMPT, new_tokens=DEPTH + 1, seed=seed, speculation=speculation, do_sample=True, **options
    )
    return dataclasses.replace(generation, effective_config=config)


def write(
    models: Models, num_texts: int, **options: Any
) -> tuple[Counter[Text], SpeculationCounters]:
    """Have the engines write texts; count their first tokens, and what speculation did."""
    target, draft = models
    description = Description("model", "tiny", VOCAB_SIZE, "", 100)
    proposer = ModelProposer(runner(draft), description, DraftMetrics(CollectorRegistry()))
    wired = WiredDrafter(proposer, vocab_size=VOCAB_SIZE, max_steps=DEPTH + 2)
    batch = Batch(runner(target), wired.fleet, max_num_seqs=64, before_round=wired.before_round)
    answers = batch.run(*(sampled(seed, **options) for seed in range(num_texts)))
    texts = Counter(tuple(answer.token_ids[0][:DEPTH]) for answer in answers)
    return texts, batch.rounds.totals


def law_of(
    model: PreTrainedModel, parameters: SamplingParameters | None = None
) -> dict[Text, float]:
    """The law of the first tokens, from the model itself."""
    parameters = parameters or SamplingParameters(do_sample=True)
    law: dict[Text, float] = {(): 1.0}
    for _ in range(DEPTH):
        texts = list(law)
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPT, *text] for text in texts])).logits[:, -1]
        shares = (logits.double() / parameters.temperature).softmax(-1).tolist()
        law = {
            (*text, token_id): law[text] * share
            for text, row in zip(texts, shares, strict=True)
            for token_id, share in enumerate(row)
        }
    return law


def p_value_of(texts: Counter[Text], law: dict[Text, float]) -> float:
    """Pearson's test; texts too rare for it count as one, with the rarest of the others."""
    total = texts.total()
    common = sorted((text for text in law if law[text] * total >= 8), key=law.__getitem__)[1:]
    counts = [texts[text] for text in common]
    shares = [law[text] for text in common]
    return p_value([*counts, total - sum(counts)], [*shares, 1 - sum(shares)])


def check_law(models: Models, num_texts: int, **options: Any) -> None:
    texts, totals = write(models, num_texts, **options)
    parameters = sampled(0, **options).parameters
    assert p_value_of(texts, law_of(models[0], parameters)) > FALSE_ALARM
    assert totals.num_accepted_tokens > num_texts
    assert len(totals.num_accepted_tokens_per_pos) == DEPTH - 1
    assert totals.num_accepted_tokens < 0.95 * totals.num_draft_tokens, "some must be rejected"


def test_texts_have_the_targets_law(models: Models) -> None:
    check_law(models, 1500)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_many_texts_have_the_targets_law(models: Models, temperature: float) -> None:
    check_law(models, 40_000, temperature=temperature)


def told_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drafter samples from processed scores and tells the raw ones' distribution."""
    draw = drawing.draw_tokens

    def draw_and_tell(logits: torch.Tensor, groups: Any, bases: Any) -> list[drawing.Drawn | None]:
        sharp = [g._replace(draft_temperature=0.3) for g in groups]
        drawn, raw = draw(logits, sharp, bases), draw(logits, groups, bases)
        return [
            one and other and one._replace(distribution=other.distribution)
            for one, other in zip(drawn, raw, strict=True)
        ]

    monkeypatch.setattr(model_proposer, "draw_tokens", draw_and_tell)


def dropped_after_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target leaves out what was drawn against the odds."""
    propose = RemoteSession.proposal

    def without_unlikely(session: RemoteSession, window: int) -> Draft:
        draft = propose(session, window)
        for count, (token, drawn) in enumerate(
            zip(draft.token_ids, draft.distributions or (), strict=True)
        ):
            if drawn and drawn.weights[drawn.token_ids.index(token)] < 0.5 * max(drawn.weights):
                return draft.cut(count)
        return draft

    monkeypatch.setattr(RemoteSession, "proposal", without_unlikely)


def early_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block verification looks no further than the first prefix that is not kept."""

    def verify(places: list[Place], uniforms: list[float]) -> Verdict:
        prefixes = weigh(places)
        kept = 0
        while kept < len(places) and uniforms[kept] <= prefixes[kept].chance:
            kept += 1
        return Verdict(kept, prefixes[kept - 1].scale if kept else 1.0)

    monkeypatch.setattr(speculative_sampling, "verify_block", verify)


@pytest.mark.parametrize("wrong", [told_another, dropped_after_the_draw, early_end])
def test_what_would_be_wrong_shows(
    models: Models, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[pytest.MonkeyPatch], None]
) -> None:
    wrong(monkeypatch)
    texts, _ = write(models, 1000)
    assert p_value_of(texts, law_of(models[0])) < FALSE_ALARM


TARGET_LAW = [0.0, 0.6, 0.4]
DRAFT_LAW = [0.5, 0.5, 0.0]


def one_position(num_texts: int) -> list[int]:
    """How often each token comes out of a draw, a verification and a draw of the target's own."""
    groups = [
        RowGroup(SamplingParameters(do_sample=True), seed, 0, PROMPT, 1, len(PROMPT))
        for seed in range(num_texts)
    ]
    draft = torch.tensor([DRAFT_LAW] * num_texts).log()
    target = torch.tensor([TARGET_LAW] * 2).log()
    drawn = drawing.draw_tokens(draft, groups, [len(PROMPT)] * num_texts)
    wanted = [
        DrawnRows(
            group._replace(token_ids=[*PROMPT, one.token_id], num_rows=2),
            [DrawnToken.of(one.token_id, one.distribution)],
        )
        for group, one in zip(groups, drawn, strict=True)
        if one
    ]
    decided = decide_by_ratio(target.repeat(num_texts, 1), wanted)
    counts = Counter(token_ids[0] for token_ids, _ in decided)
    return [counts[token_id] for token_id in range(len(TARGET_LAW))]


def test_a_single_position_has_the_targets_law() -> None:
    assert p_value(one_position(4000), TARGET_LAW) > FALSE_ALARM


def test_noise_shared_with_the_drafter_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_target(xp: Any, ids: Any, rows: list[NoiseRow], *, stream: Stream) -> Any:
        return gumbel_of(xp, ids, [r._replace(base=0) for r in rows], stream=Stream.RESIDUAL)

    monkeypatch.setattr(drawing, "gumbel_of", of_the_target)
    assert p_value(one_position(4000), TARGET_LAW) < FALSE_ALARM
