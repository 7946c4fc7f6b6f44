"""Our drafters and the one in another language keep every rule; others are found out."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
from draft.harness import ScriptedProposer, draft_service
from draft.hostile import AdversarialDrafter, RandomDrafter, serving
from draft.node_drafter import node_drafter
from outrider_conformance.report import judge
from outrider_conformance.rules import RULES
from outrider_conformance.streams import InProcessStream, LinkEnded
from outrider_conformance.target import Target
from outrider_conformance.trial import ANY_VOCABULARY, trial
from outrider_draft import suffix_proposer
from outrider_draft.lookup_proposer import LookupProposer
from outrider_draft.proposer import Proposer
from outrider_draft.settings import LookupSettings, SuffixSettings
from outrider_draft.suffix_proposer import SuffixProposer
from outrider_runtime.recent_texts import RecentTexts
from outrider_runtime.suffix_tree import SuffixTree


def counting_round(tokens: Sequence[int]) -> int:
    """The next number, within the vocabulary."""
    return (tokens[-1] + 1) % ANY_VOCABULARY


async def broken_rules(address: str, *, timeout: float = 20.0) -> dict[str, str]:
    """The rules that a drafter breaks, and how."""
    async with trial(address, timeout=timeout) as running:
        outcomes = [await judge(rule, running) for rule in RULES]
    return {o.rule: o.violation for o in outcomes if o.violation is not None}


@pytest.mark.parametrize(
    "proposer",
    [
        ScriptedProposer(counting_round),
        LookupProposer(LookupSettings()),
        SuffixProposer(SuffixSettings()),
    ],
)
async def test_our_drafters_keep_every_rule(proposer: Proposer) -> None:
    async with draft_service(proposer) as drafter:
        assert await broken_rules(drafter.address) == {}


async def test_the_example_in_another_language_keeps_every_rule() -> None:
    with node_drafter() as address:
        assert await broken_rules(address) == {}


async def test_a_drafter_that_breaks_rules_is_found_out() -> None:
    async with serving(AdversarialDrafter(seed=3)) as drafter:
        assert len(await broken_rules(drafter.address, timeout=0.3)) >= 5


class CommonTexts(RecentTexts):
    """Makes no difference between tenants."""

    def tree(self, tenant: bytes) -> SuffixTree | None:
        return super().tree(b"everybody")

    def add(self, tenant: bytes, token_ids: Sequence[int]) -> None:
        super().add(b"everybody", token_ids)


async def test_a_drafter_that_mixes_tenants_is_found_out() -> None:
    with mock.patch.object(suffix_proposer, "RecentTexts", CommonTexts):
        proposer = SuffixProposer(SuffixSettings())
    async with draft_service(proposer) as drafter:
        broken = await broken_rules(drafter.address)
    assert len(broken) == 1
    assert any("tenant" in rule for rule in broken), broken


async def test_a_drafter_that_never_asks_for_what_is_missing_is_found_out() -> None:
    async with serving(RandomDrafter(seed=1)) as drafter:
        broken = await broken_rules(drafter.address, timeout=0.3)
    assert any("Resync" in rule for rule in broken), broken


async def test_a_servicer_in_the_same_process_is_linked_without_a_network() -> None:
    target = Target(InProcessStream(RandomDrafter(seed=1).Speculate), vocab_size=50)
    await target.hello()
    await target.open(1, [1, 2, 3], window=3)
    assert len(await target.grown(1)) == 3
    await target.disconnect()
    assert isinstance(target.error, LinkEnded)
