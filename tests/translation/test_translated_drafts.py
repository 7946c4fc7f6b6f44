"""Through real services: a draft model with another tokenizer changes nothing, and is of use."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine.tiny_models import build_tiny
from exactness import running
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import save
from exactness.running import SYNCHRONOUS, Request, RunningTarget, num_accepted, num_drafted, tokens
from outrider_client import Completion, DraftLinkState, SpeculationConfig
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_draft import drafter as drafting
from outrider_draft.drafter import Drafter
from outrider_draft.metrics import DraftMetrics
from outrider_draft.settings import ModelSettings
from outrider_runtime.errors import StartupError
from prometheus_client import CollectorRegistry
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from translation.vocabularies import (
    byte_fallback,
    byte_level,
    shuffled,
    with_vocabulary,
    word_pieces,
    words,
)

WINDOW = {
    "num_assistant_tokens": 4,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}
GREEDY: dict[str, Any] = {"max_new_tokens": 24, **WINDOW}
SAMPLED: dict[str, Any] = {**GREEDY, "do_sample": True, "top_k": 0}
SEED = 11


class Drafts(NamedTuple):
    """What came of the same requests without a drafter and with it."""

    plain: Sequence[Completion]
    drafted: Sequence[Completion]

    @property
    def acceptance(self) -> float:
        """Draft tokens accepted of those verified."""
        return num_accepted(self.drafted) / num_drafted(self.drafted)


def drafter(model: Path, *target_tokenizers: Path) -> Drafter:
    """A draft model that translates."""
    settings = ModelSettings(
        str(model), dtype="float64", target_tokenizers=tuple(map(str, target_tokenizers))
    )
    return drafting.build(settings, DraftMetrics(CollectorRegistry()))


def compare(target: RunningTarget, requests: Sequence[Request]) -> Drafts:
    """Serve requests both ways; the tokens are the same and drafting happened."""
    plain = target.generate_together(requests)
    drafted = target.generate_together(requests, SYNCHRONOUS)
    assert tokens(drafted) == tokens(plain)
    assert num_drafted(drafted) > 0
    return Drafts(plain, drafted)


def code_requests(tokenizer_of: Path, *, count: int = 2) -> list[Request]:
    """Beginnings of code, to be gone on with greedily and by sampling."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    prompts = [tokenizer(prompt.text)["input_ids"] for prompt in held_out_prompts()[:count]]
    return [Request(p, o, SEED) for o in (GREEDY, SAMPLED) for p in prompts]


@contextmanager
def fed_target(
    threads: ServiceThreads, model: Path, drafts: Drafter
) -> Iterator[tuple[RunningTarget, str]]:
    """A target with one drafter, and what kind it takes it for."""
    with (
        running.draft_service(threads, drafts) as draft,
        running.target(threads, model, drafts=[draft.address]) as target,
    ):
        yield target, target.client.server_info().draft_links[0].kind


@pytest.fixture(scope="module")
def untranslated(threads: ServiceThreads) -> Drafts:
    """What the shipped draft model does for the shipped target."""
    with fed_target(threads, TARGET_DIR, drafter(DRAFT_DIR)) as (target, kind):
        assert kind == "model"
        return compare(target, code_requests(TARGET_DIR))


def test_the_same_model_with_its_vocabulary_shuffled_is_as_good(
    threads: ServiceThreads, tmp_path: Path, untranslated: Drafts
) -> None:
    draft = with_vocabulary(DRAFT_DIR, tmp_path, shuffled(4096))
    requests = code_requests(TARGET_DIR)
    with fed_target(threads, TARGET_DIR, drafter(draft, TARGET_DIR)) as (target, kind):
        assert kind == "translated"
        drafts = compare(target, requests)
        adaptive = target.generate_together(requests, SpeculationConfig())
        assert tokens(adaptive) == tokens(drafts.plain)
    assert tokens(drafts.plain) == tokens(untranslated.plain)
    assert drafts.acceptance > 0.95 * untranslated.acceptance


def test_a_model_with_a_smaller_vocabulary_is_of_use(
    threads: ServiceThreads, tmp_path: Path, untranslated: Drafts
) -> None:
    draft = with_vocabulary(DRAFT_DIR, tmp_path, shuffled(1500))
    with fed_target(threads, TARGET_DIR, drafter(draft, TARGET_DIR)) as (target, _):
        drafts = compare(target, code_requests(TARGET_DIR))
    assert drafts.acceptance > 0.5 * untranslated.acceptance


def test_targets_of_both_kinds_are_served_at_once(
    threads: ServiceThreads, tmp_path: Path, untranslated: Drafts
) -> None:
    smaller = with_vocabulary(TARGET_DIR, tmp_path, shuffled(3000))
    with (
        running.draft_service(threads, drafter(DRAFT_DIR, smaller, TARGET_DIR)) as draft,
        running.target(threads, TARGET_DIR, drafts=[draft.address]) as same,
        running.target(threads, smaller, drafts=[draft.address]) as other,
        ThreadPoolExecutor(2) as at_once,
    ):
        kinds = [t.client.server_info().draft_links[0].kind for t in (same, other)]
        assert kinds == ["model", "translated"]
        requests = [code_requests(folder, count=1) for folder in (TARGET_DIR, smaller)]
        found = at_once.map(compare, (same, other), requests)
        own, translated = found
    assert tokens(own.drafted) == tokens(untranslated.drafted[::2])
    assert translated.acceptance > 0.5 * untranslated.acceptance


def test_an_end_of_text_is_drafted_as_the_targets_own(
    threads: ServiceThreads, tmp_path: Path
) -> None:
    """The target itself with its ids shuffled: all that it drafts is right, to the end."""
    perfect = with_vocabulary(TARGET_DIR, tmp_path, shuffled(4096))
    end = AutoTokenizer.from_pretrained(TARGET_DIR).eos_token_id
    ending = {**GREEDY, "min_new_tokens": 9, "sequence_bias": [[[end], 100.0]]}
    requests = [Request(r.prompt, ending, SEED) for r in code_requests(TARGET_DIR, count=1)[:1]]
    with fed_target(threads, TARGET_DIR, drafter(perfect, TARGET_DIR)) as (target, _):
        drafts = compare(target, requests)
        ordinary = compare(target, code_requests(TARGET_DIR, count=1))
    (ended,) = drafts.drafted
    assert len(ended.token_ids) == 10
    assert ended.token_ids[-1] == end
    assert num_accepted(drafts.drafted) == num_drafted(drafts.drafted) == 8
    assert ordinary.acceptance > 0.99


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": lambda: byte_level(300),
    "fallback": byte_fallback,
    "words": words,
    "word pieces": word_pieces,
}


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ("bytes", "words"),
        ("words", "bytes"),
        pytest.param("fallback", "word pieces", marks=pytest.mark.slow),
        pytest.param("word pieces", "bytes", marks=pytest.mark.slow),
    ],
)
def test_a_lossy_tokenizer_on_either_side_changes_no_token(
    target: str, draft: str, threads: ServiceThreads, tmp_path: Path
) -> None:
    """Random models write bytes that are no characters, words that are none, and special tokens."""
    folders = []
    for seed, kind in enumerate((target, draft)):
        tokenizer = TOKENIZERS[kind]()
        model = build_tiny("llama", vocab_size=len(tokenizer), num_hidden_layers=1, seed=seed)
        save(model, tokenizer, tmp_path / kind)
        folders.append(tmp_path / kind)
    chance = random.Random(1)
    size = len(TOKENIZERS[target]())
    requests = [
        Request(chance.choices(range(size), k=12), {**options, "eos_token_id": []}, SEED)
        for options in (GREEDY, SAMPLED, {**SAMPLED, "repetition_penalty": 1.3, "top_k": 5})
        for _ in range(4)
    ]
    with fed_target(threads, folders[0], drafter(folders[1], folders[0])) as (running_target, kind):
        assert kind == "translated"
        compare(running_target, requests)


def test_a_drafter_without_the_targets_tokenizer_is_refused_and_says_what_helps(
    threads: ServiceThreads, tmp_path: Path
) -> None:
    smaller = with_vocabulary(DRAFT_DIR, tmp_path, shuffled(800))
    with (
        running.draft_service(threads, drafter(smaller)) as draft,
        running.target(threads, TARGET_DIR, drafts=[draft.address], wait_for_links=False) as target,
    ):
        target.wait_for_links(DraftLinkState.REFUSED)
        (link,) = target.client.server_info().draft_links
        assert "--target-tokenizer" in link.reason
        (plain,) = target.generate_together(code_requests(TARGET_DIR, count=1)[:1])
        assert len(plain.token_ids) == GREEDY["max_new_tokens"]


def test_a_tokenizer_that_cannot_be_had_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"--target-tokenizer: .* holds no tokenizer"):
        drafter(DRAFT_DIR, tmp_path)
    bare = tmp_path / "bare"
    build_tiny("llama").save_pretrained(bare)
    with pytest.raises(StartupError, match=r"--target-tokenizer: .* has no tokenizer itself"):
        drafter(bare, TARGET_DIR)


def test_its_own_tokenizer_may_be_among_those_of_the_targets() -> None:
    assert drafter(DRAFT_DIR, TARGET_DIR).proposer.description.translates == frozenset()
