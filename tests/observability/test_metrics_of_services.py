"""What two running services count, against what their caller saw."""

from __future__ import annotations

import pytest
from exactness.running import wait_until
from observability.pages import Pair
from outrider_client import GenerationConfig, InvalidRequestError


def test_rounds_and_answers_are_told_as_distributions(pair: Pair) -> None:
    before, draft_before = pair.target_page(), pair.draft_page()
    completion = pair.generate("once upon a time", max_new_tokens=40)
    after, draft_after = pair.target_page(), pair.draft_page()
    stats = completion.speculation
    assert stats.num_accepted_tokens > 10

    def gained(sample: str, **labels: str) -> float:
        return after.value(sample, **labels) - before.value(sample, **labels)

    def drafted(sample: str, **labels: str) -> float:
        return draft_after.value(sample, **labels) - draft_before.value(sample, **labels)

    rounds = gained("round_seconds_count")
    assert rounds >= stats.num_drafts + stats.num_plain_rounds > 0
    for name in ("verify_forward_seconds", "round_rows", "round_sequences"):
        assert gained(f"{name}_count") == rounds
    assert gained("round_seconds_sum") >= gained("verify_forward_seconds_sum") > 0
    assert gained("round_sequences_sum") == rounds, "one sequence at a time"
    assert gained("round_rows_sum") >= len("once upon a time") + stats.num_draft_tokens
    # The first round's tokens come after nothing.
    assert 40 - 16 <= gained("inter_token_latency_seconds_count") < 40
    assert gained("inter_token_latency_seconds_sum") <= gained("e2e_request_latency_seconds_sum")
    assert gained("request_queue_time_seconds_count") == 1
    assert gained("draft_link_answer_seconds_count") > 0
    assert gained("draft_link_frames_sent_total") > 0
    assert after.value("draft_link_up", address=pair.draft.address) == 1
    assert drafted("draft_answer_seconds_count") > 0
    assert drafted("draft_step_lines_count") > 0
    assert drafted("draft_forward_seconds_count") > 0
    assert drafted("draft_proposed_tokens_total") >= stats.num_draft_tokens


@pytest.mark.parametrize("name", ["round_seconds", "round_rows", "inter_token_latency_seconds"])
def test_buckets_of_a_tally_grow_and_end_with_all(pair: Pair, name: str) -> None:
    pair.generate("abc")
    page = pair.target_page()
    buckets = [
        sample.value
        for sample in page.families[name].samples
        if sample.name == f"outrider_{name}_bucket"
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == page.value(f"{name}_count") > 0


def test_refusals_are_counted_by_reason(pair: Pair) -> None:
    method = "/outrider.v1.GenerationService/Generate"
    before = pair.target_page()
    with pytest.raises(InvalidRequestError):
        pair.client.generate("")
    with pytest.raises(InvalidRequestError):
        pair.client.generate("abc", GenerationConfig(max_new_tokens=100_000))

    def gained(reason: str) -> float:
        labels = {"method": method, "reason": reason}
        now, then = (
            page.value("grpc_server_refused_total", **labels)
            for page in (pair.target_page(), before)
        )
        return now - then

    # A call is counted once it is over, which its caller may hear a moment before.
    wait_until(lambda: gained("EMPTY_PROMPT") == gained("PROMPT_TOO_LONG") == 1)


def test_what_runs_is_told(pair: Pair) -> None:
    target, draft = pair.target_page(), pair.draft_page()
    (model,) = target.families["model_info"].samples
    assert model.labels["dtype"] == "float64"
    assert model.labels["device"] == "cpu"
    assert draft.value("drafter_info", kind="model") == 1
    for page in (target, draft):
        assert page.value("build_info") == 1
    assert target.value("max_num_seqs") == 4
    assert target.value("max_waiting_requests") == 4
    assert target.value("kv_cache_tokens") == 4096


def test_more_requests_do_not_make_more_time_series(pair: Pair) -> None:
    """Nothing that a caller sends is in a label, so what is shown has a size of its own."""

    def series() -> set[tuple[str, str]]:
        return {
            (sample.name, str(sorted(sample.labels.items())))
            for page in (pair.target_page(), pair.draft_page())
            for family in page.families.values()
            for sample in family.samples
        }

    pair.generate("the first", request_id="first")
    before = series()
    for number in range(8):
        pair.generate(f"secret {number}", request_id=f"r-{number}", max_new_tokens=8)
    assert not {each for each in series() - before if "per_pos" not in each[0]}
    assert not [each for each in series() if "secret" in each[1] or "r-1" in each[1]]
