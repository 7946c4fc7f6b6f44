"""What one request wrote is drafted to the next of its tenant by a draft service, to no other."""

from __future__ import annotations

from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import ModelPair
from exactness.running import RunningTarget, draft_service, suffix_drafter, target
from outrider_client import Completion, GenerationConfig, SpeculationConfig


def write(running: RunningTarget, salt: str) -> Completion:
    return running.client.generate(
        [7, 8, 9],
        GenerationConfig(max_new_tokens=40, do_sample=True, temperature=2.0, top_k=0),
        seed=1,
        speculation=SpeculationConfig(
            method="remote", pacing="synchronous", draft_timeout_ms=60_000, cache_salt=salt
        ),
    )


def test_over_a_link_a_tenant_is_drafted_its_own_outputs(
    threads: ServiceThreads, pair: ModelPair
) -> None:
    with (
        draft_service(threads, suffix_drafter()) as drafter,
        target(threads, pair.target, drafts=[drafter.address]) as running,
    ):
        first, again, other = (write(running, salt) for salt in ("anna", "anna", "bert"))
    assert first.token_ids == again.token_ids == other.token_ids
    assert again.speculation.num_accepted_tokens > 20 > first.speculation.num_accepted_tokens
    assert other.speculation == first.speculation
