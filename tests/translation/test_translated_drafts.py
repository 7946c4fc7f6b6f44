"""Through real services: a draft model with another tokenizer changes nothing, and is of use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from exactness import running
from exactness.loop_thread import ServiceThreads
from exactness.running import SYNCHRONOUS, Request, RunningTarget, num_accepted, num_drafted, tokens
from outrider_client import Completion
from outrider_demo import DRAFT_DIR, TARGET_DIR, held_out_prompts
from outrider_draft import drafter as drafting
from outrider_draft.drafter import Drafter
from outrider_draft.settings import ModelSettings
from outrider_runtime.metrics import DraftMetrics
from prometheus_client import CollectorRegistry
from transformers import AutoTokenizer
from translation.vocabularies import shuffled, with_vocabulary

WINDOW = {
    "num_assistant_tokens": 4,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}
GREEDY: dict[str, Any] = {"max_new_tokens": 32, **WINDOW}
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


@pytest.fixture(scope="module")
def code_target(threads: ServiceThreads) -> Iterator[RunningTarget]:
    """The shipped target, without drafters."""
    with running.target(threads, TARGET_DIR) as target:
        yield target


@pytest.fixture(scope="module")
def code_requests() -> list[Request]:
    """Beginnings of code, to be gone on with greedily and by sampling."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET_DIR)
    prompts = [tokenizer(prompt.text)["input_ids"] for prompt in held_out_prompts()[:4]]
    return [Request(p, o, SEED) for o in (GREEDY, SAMPLED) for p in prompts]


@pytest.fixture(scope="module")
def untranslated(threads: ServiceThreads, code_requests: list[Request]) -> Drafts:
    """What the shipped draft model does for the shipped target."""
    with (
        running.draft_service(threads, drafter(DRAFT_DIR)) as draft,
        running.target(threads, TARGET_DIR, drafts=[draft.address]) as target,
    ):
        return compare(target, code_requests)


def test_the_same_model_with_its_vocabulary_shuffled_is_as_good(
    threads: ServiceThreads, tmp_path: Path, code_requests: list[Request], untranslated: Drafts
) -> None:
    shuffled_draft = with_vocabulary(DRAFT_DIR, tmp_path, shuffled(4096))
    with (
        running.draft_service(threads, drafter(shuffled_draft, TARGET_DIR)) as draft,
        running.target(threads, TARGET_DIR, drafts=[draft.address]) as target,
    ):
        assert [link.kind for link in target.client.server_info().draft_links] == ["translated"]
        drafts = compare(target, code_requests)
    assert tokens(drafts.plain) == tokens(untranslated.plain)
    assert drafts.acceptance > 0.9 * untranslated.acceptance


@pytest.mark.parametrize("kept", [3000, 1500])
def test_a_model_with_fewer_tokens_of_its_own_is_of_use(
    kept: int,
    threads: ServiceThreads,
    tmp_path: Path,
    code_requests: list[Request],
    untranslated: Drafts,
) -> None:
    smaller = with_vocabulary(DRAFT_DIR, tmp_path, shuffled(kept))
    with (
        running.draft_service(threads, drafter(smaller, TARGET_DIR)) as draft,
        running.target(threads, TARGET_DIR, drafts=[draft.address]) as target,
    ):
        drafts = compare(target, code_requests)
    assert tokens(drafts.plain) == tokens(untranslated.plain)
    assert drafts.acceptance > 0.5 * untranslated.acceptance


def test_a_target_with_fewer_tokens_is_served_beside_one_with_the_same(
    threads: ServiceThreads, tmp_path: Path, code_requests: list[Request], untranslated: Drafts
) -> None:
    """One draft service, two targets at once, each in its own ids."""
    smaller = with_vocabulary(TARGET_DIR, tmp_path, shuffled(3000))
    tokenizer = AutoTokenizer.from_pretrained(smaller)
    prompts = [tokenizer(prompt.text)["input_ids"] for prompt in held_out_prompts()[:3]]
    requests = [Request(p, o, SEED) for o in (GREEDY, SAMPLED) for p in prompts]
    with (
        running.draft_service(threads, drafter(DRAFT_DIR, smaller)) as draft,
        running.target(threads, TARGET_DIR, drafts=[draft.address]) as same,
        running.target(threads, smaller, drafts=[draft.address]) as other,
    ):
        kinds = [t.client.server_info().draft_links[0].kind for t in (same, other)]
        assert kinds == ["model", "translated"]
        drafts = compare(other, requests)
        assert tokens(compare(same, code_requests).drafted) == tokens(untranslated.drafted)
    assert drafts.acceptance > 0.5 * untranslated.acceptance
