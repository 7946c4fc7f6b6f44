"""What a caller gets for a request: its start, its tokens, its end, and numbers that add up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import speculation_pb2
from outrider_client import AsyncClient, Client, FinishReason, GenerationConfig, SpeculationConfig
from outrider_contract.generation_config import GLOBAL_DEFAULTS, to_json_dict
from outrider_contract.metadata import REQUEST_ID
from service.asking import ENDLESS, LOOKUP, PLAIN, Config, ask, collect, emitting
from service.harness import PATIENCE, Caller, RunningService
from service.oracle import Oracle
from service.tiny_folder import (
    BOS,
    EOS,
    GENERATION_CONFIG,
    MAX_MODEL_LEN,
    TOKENIZER_SIZE,
    VOCAB_SIZE,
    bytes_of,
    ids_of,
)

SAMPLED: Config = {"do_sample": True, "temperature": 1.5, "top_k": 0}
REPETITIVE = "the cat sat on the mat, the cat sat on the mat, the cat sat"


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def test_the_first_message_names_the_request_and_what_is_in_force(caller: Caller) -> None:
    speculation = speculation_pb2.SpeculationConfig(
        method=speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP, max_assistant_tokens=3
    )
    request = ask("abc", seed=7, request_id="mine", max_new_tokens=2, speculation=speculation)
    started = collect(caller.open(request)).started
    assert started.request_id == "mine"
    assert started.seed == 7
    assert started.num_prompt_tokens == len("<s>") - 2 + len("abc")
    assert started.effective_config.max_new_tokens == 2
    in_force = started.effective_speculation
    assert in_force.enabled
    assert in_force.method == speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP
    assert in_force.verification == speculation_pb2.VERIFICATION_EXACT
    assert in_force.pacing == speculation_pb2.DRAFT_PACING_ADAPTIVE
    assert in_force.max_assistant_tokens == 3
    assert in_force.draft_timeout_ms > 0
    assert not in_force.HasField("draft_temperature"), "it is learned"


def test_the_configuration_in_force_is_the_requests_over_the_models_over_the_defaults(
    caller: Caller,
) -> None:
    request = ask(max_new_tokens=1, top_k=9, clear=())
    effective = to_json_dict(collect(caller.open(request)).started.effective_config)
    assert effective["top_k"] == 9  # the request's, though the model has one
    assert effective["temperature"] == GENERATION_CONFIG["temperature"]  # the model's
    assert effective["eos_token_id"] == EOS
    assert effective["top_p"] == GLOBAL_DEFAULTS["top_p"]  # nobody's but transformers'
    # transformers' defaults for speculation give way to the server's.
    assert effective["num_assistant_tokens"] == 5
    assert effective["num_assistant_tokens_schedule"] == "heuristic"  # the harness says so
    assert effective["assistant_confidence_threshold"] == 0.4
    # What the model's file asks for and nobody serves is left to the default.
    assert "max_cache_len" not in effective
    assert "cache_implementation" not in effective


def test_a_cleared_field_takes_neither_the_models_value_nor_a_default(caller: Caller) -> None:
    request = ask(max_new_tokens=1, clear=("eos_token_id", "temperature", "top_p"))
    effective = to_json_dict(collect(caller.open(request)).started.effective_config)
    assert not {"eos_token_id", "temperature", "top_p"} & effective.keys()


def test_a_request_that_says_nothing_gets_20_new_tokens(caller: Caller) -> None:
    answer = collect(caller.open(ask("abc")))
    assert len(answer.token_ids) == 20
    assert answer.finish_reasons == ["LENGTH"]


def test_a_prompt_as_text_or_as_its_ids_gives_the_same_tokens(caller: Caller) -> None:
    as_text = collect(caller.open(ask("hello", max_new_tokens=12)))
    as_ids = collect(caller.open(ask([BOS, *ids_of("hello")], max_new_tokens=12)))
    assert as_text.token_ids == as_ids.token_ids
    assert as_text.text == as_ids.text
    assert as_text.complete.usage.prompt_tokens == 6


def test_token_ids_are_used_as_they_are_with_nothing_added(caller: Caller) -> None:
    assert collect(caller.open(ask([77], max_new_tokens=1))).complete.usage.prompt_tokens == 1


def test_greedy_text_is_what_the_model_alone_says(caller: Caller, oracle: Oracle) -> None:
    prompt = [BOS, *ids_of(REPETITIVE)]
    answer = collect(caller.open(ask(prompt, max_new_tokens=30, speculation=LOOKUP)))
    expected = oracle.sequence(answer.started, prompt, sample_index=0, count=30)
    assert answer.token_ids == expected
    assert answer.complete.speculation.num_accepted_tokens > 0


def test_each_of_several_sequences_is_the_sample_of_its_own_index(
    caller: Caller, oracle: Oracle
) -> None:
    prompt = ids_of("several of them")
    request = ask(
        prompt, seed=11, max_new_tokens=16, num_return_sequences=4, speculation=LOOKUP, **SAMPLED
    )
    answer = collect(caller.open(request))
    for index, part in enumerate(answer.parts):
        assert part.token_ids == oracle.sequence(
            answer.started, prompt, sample_index=index, count=16
        )
    assert len({tuple(part.token_ids) for part in answer.parts}) == 4
    assert answer.complete.usage.completion_tokens == 4 * 16


def test_a_sequence_does_not_depend_on_how_many_others_are_asked_for(caller: Caller) -> None:
    answers = [
        collect(
            caller.open(ask("abc", seed=5, max_new_tokens=8, num_return_sequences=count, **SAMPLED))
        )
        for count in (1, 2, 5)
    ]
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
    assert answers[1].parts[1].token_ids == answers[2].parts[1].token_ids


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_the_same_seed_gives_the_same_tokens_however_they_are_drafted(
    caller: Caller, seed: int
) -> None:
    drafted, plain = (
        collect(
            caller.open(
                ask(REPETITIVE, seed=seed, max_new_tokens=40, speculation=how, **SAMPLED, top_p=0.4)
            )
        )
        for how in (LOOKUP, PLAIN)
    )
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.started.seed == plain.started.seed == seed
    assert drafted.complete.speculation.num_draft_tokens > 0
    assert plain.complete.speculation.num_draft_tokens == 0
    assert not any(plain.parts[0].drafted)


def test_without_a_seed_one_is_drawn_and_returned_and_can_be_replayed(caller: Caller) -> None:
    first, second = (collect(caller.open(ask("abc", max_new_tokens=16, **SAMPLED))) for _ in "ab")
    assert first.started.seed != second.started.seed
    assert first.token_ids != second.token_ids
    replayed = collect(
        caller.open(ask("abc", seed=first.started.seed, max_new_tokens=16, **SAMPLED))
    )
    assert replayed.token_ids == first.token_ids


def test_different_seeds_give_different_samples(caller: Caller) -> None:
    answers = [
        collect(caller.open(ask("abc", seed=seed, max_new_tokens=16, **SAMPLED)))
        for seed in range(4)
    ]
    assert len({tuple(answer.token_ids) for answer in answers}) == 4


def test_accepted_tokens_are_flagged_and_counted(caller: Caller) -> None:
    request = ask(
        "ab", max_new_tokens=30, speculation=LOOKUP, num_assistant_tokens=4,
        num_assistant_tokens_schedule="constant", **emitting("abc"),
    )  # fmt: skip
    request.speculation.report_rounds = True
    answer = collect(caller.open(request))
    assert answer.text == "cab" * 10
    stats = answer.complete.speculation
    # The text repeats from its third letter on: all but the first rounds accept everything.
    assert stats.num_accepted_tokens >= 20
    assert sum(answer.parts[0].drafted) == stats.num_accepted_tokens
    assert stats.mean_acceptance_length == pytest.approx(
        1 + stats.num_accepted_tokens / stats.num_drafts
    )
    assert stats.draft_acceptance_rate == pytest.approx(
        stats.num_accepted_tokens / stats.num_draft_tokens
    )
    assert stats.num_rounds == stats.num_drafts + stats.num_plain_rounds == len(stats.rounds)
    assert sum(each.num_draft_tokens for each in stats.rounds) == stats.num_draft_tokens
    assert max(each.num_draft_tokens for each in stats.rounds) == 4
    assert stats.num_accepted_tokens_per_pos[0] >= stats.num_accepted_tokens_per_pos[-1] > 0


def test_rounds_are_listed_only_when_asked_for(caller: Caller) -> None:
    answer = collect(caller.open(ask("abc", max_new_tokens=8, speculation=LOOKUP)))
    assert answer.complete.speculation.num_rounds > 0
    assert not answer.complete.speculation.rounds


def test_no_window_exceeds_the_requests_bound(caller: Caller) -> None:
    request = ask(REPETITIVE, max_new_tokens=40, speculation=LOOKUP, num_assistant_tokens=9)
    request.speculation.report_rounds = True
    request.speculation.max_assistant_tokens = 2
    rounds = collect(caller.open(request)).complete.speculation.rounds
    assert max(each.num_draft_tokens for each in rounds) == 2


def test_asking_for_prompt_lookup_in_transformers_words_drafts_by_it(caller: Caller) -> None:
    request = ask(REPETITIVE, max_new_tokens=30, prompt_lookup_num_tokens=3)
    answer = collect(caller.open(request))
    assert answer.started.effective_speculation.method == speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP
    assert answer.complete.speculation.num_draft_tokens > 0


def test_without_a_draft_service_a_request_decodes_plainly(caller: Caller) -> None:
    stats = collect(caller.open(ask(REPETITIVE, max_new_tokens=10))).complete.speculation
    assert (stats.num_rounds, stats.num_drafts, stats.num_plain_rounds) == (10, 0, 0)
    assert (stats.mean_acceptance_length, stats.draft_acceptance_rate) == (0.0, 0.0)


def test_the_id_of_a_request_comes_from_its_field_else_its_metadata_else_the_server(
    caller: Caller,
) -> None:
    def id_of(request: pb.GenerateRequest, **metadata: str) -> str:
        call = caller.stub.Generate(
            request,
            timeout=PATIENCE,
            metadata=tuple((name.replace("_", "-"), v) for name, v in metadata.items()),
        )
        returned = collect(call).started.request_id
        assert dict(call.initial_metadata())[REQUEST_ID] == returned
        return returned

    assert id_of(ask(request_id="field", max_new_tokens=1), x_request_id="meta") == "field"
    assert id_of(ask(max_new_tokens=1), x_request_id="meta") == "meta"
    made_up = {id_of(ask(max_new_tokens=1)) for _ in range(2)}
    assert len(made_up) == 2
    assert "" not in made_up


def test_an_id_can_be_used_again_once_its_request_has_ended(caller: Caller) -> None:
    for _ in range(3):
        collect(caller.open(ask(request_id="again", max_new_tokens=1)))


def test_the_model_is_described_as_it_is(client: Client, folder: Path) -> None:
    info = client.model_info()
    assert info.served_model_name == folder.name
    assert info.architecture == "LlamaForCausalLM"
    assert info.vocab_size == VOCAB_SIZE
    assert info.max_model_len == MAX_MODEL_LEN
    assert info.dtype == "float64"
    assert info.has_tokenizer
    assert len(info.tokenizer_fingerprint) == 64
    defaults = info.default_generation_config.to_dict()
    served = {"max_cache_len", "cache_implementation"} ^ GENERATION_CONFIG.keys()
    assert defaults == {name: GENERATION_CONFIG[name] for name in served}


def test_the_server_is_described_as_it_is(client: Client) -> None:
    info = client.server_info()
    assert info.version
    assert info.draft_protocol_version == 1
    assert info.draft_links == ()
    assert info.max_num_seqs == 8
    assert info.max_waiting_requests == 8
    assert info.kv_cache_tokens == 8192


def test_loads_count_what_runs_and_go_back_to_nothing(
    service: RunningService, caller: Caller
) -> None:
    before = caller.wait_until_idle()
    with service.gate.held(after=2):
        call = caller.open(
            ask("abc", max_new_tokens=9, num_return_sequences=3, speculation=LOOKUP, **SAMPLED)
        )
        next(call)
        service.gate.wait_until_held()
        running = caller.loads()
        assert running.num_running_sequences == 3
        assert running.num_waiting_requests == 0
        assert 0 < running.kv_cache_usage < 0.1
    complete = list(call)[-1].complete
    after = caller.loads()  # at once, not after a while
    assert after.num_running_sequences == 0
    assert after.kv_cache_usage == 0
    assert after.num_generated_tokens - before.num_generated_tokens == 27
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_rounds"):
        gained = getattr(after.speculation, name) - getattr(before.speculation, name)
        assert gained == getattr(complete.speculation, name)


def test_the_last_rounds_are_explained(client: Client) -> None:
    completion = client.generate(
        REPETITIVE,
        GenerationConfig(max_new_tokens=30),
        speculation=SpeculationConfig(method="prompt-lookup"),
    )
    found = client.explain()
    rounds = completion.speculation.num_rounds
    assert found.num_rounds >= rounds
    assert found.num_tokens >= 30
    assert found.num_drafts > 0
    assert found.num_accepted_tokens <= found.num_draft_tokens
    assert found.num_drafts + sum(found.silences.values()) == found.num_sequence_rounds
    assert found.forward_seconds > 0
    assert found.findings
    assert found.speedup_ratio is None or found.speedup_ratio > 0  # None until it was measured


def test_text_becomes_ids_with_or_without_special_ones(client: Client) -> None:
    assert client.tokenize("hé") == [BOS, *ids_of("hé")]
    assert client.tokenize("hé", add_special_tokens=False) == ids_of("hé")
    assert client.tokenize("") == [BOS]


def test_ids_become_text_with_or_without_special_ones(client: Client) -> None:
    ids = [BOS, *ids_of("hé"), EOS]
    assert client.detokenize(ids) == "hé"
    assert client.detokenize(ids, skip_special_tokens=False) == "<s>hé</s>"
    assert client.detokenize([]) == ""
    assert client.detokenize(ids_of("hé")[:-1]) == "h\N{REPLACEMENT CHARACTER}"


def test_both_clients_return_what_the_messages_say(client: Client, caller: Caller) -> None:
    config = GenerationConfig(max_new_tokens=12, clear_fields=ENDLESS)
    completion = client.generate(
        "abc", config, seed=3, speculation=SpeculationConfig(method="prompt-lookup")
    )
    raw = collect(caller.open(ask("abc", seed=3, max_new_tokens=12, speculation=LOOKUP)))
    assert completion.token_ids == raw.token_ids
    assert completion.text == raw.text
    assert completion.drafted == raw.parts[0].drafted
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.seed == 3
    assert completion.usage.completion_tokens == 12
    assert completion.effective_config.top_k == GENERATION_CONFIG["top_k"]
    assert completion.speculation.num_draft_tokens == raw.complete.speculation.num_draft_tokens > 0


async def test_the_asyncio_client_streams_several_requests_at_once(
    service: RunningService, caller: Caller
) -> None:
    config = GenerationConfig(
        max_new_tokens=12, do_sample=True, temperature=1.5, top_k=0, clear_fields=ENDLESS
    )

    async with AsyncClient(service.address) as client:

        async def streamed(seed: int) -> list[int]:
            token_ids: list[int] = []
            async with client.stream("abc", config, seed=seed) as stream:
                async for chunk in stream:
                    token_ids += chunk.token_ids
            assert stream.final.token_ids == token_ids
            return token_ids

        together = await asyncio.gather(*map(streamed, range(6)))
    for seed, token_ids in enumerate(together):
        alone = collect(caller.open(ask("abc", seed=seed, max_new_tokens=12, **SAMPLED)))
        assert alone.token_ids == token_ids


def test_ids_beyond_the_tokenizer_leave_no_text(caller: Caller) -> None:
    unknown = range(TOKENIZER_SIZE, VOCAB_SIZE)
    config: Config = {"sequence_bias": [[[token_id], 1e6] for token_id in unknown]}
    answer = collect(caller.open(ask("abc", max_new_tokens=4, **config)))
    assert set(answer.token_ids) <= set(unknown)
    assert answer.text == ""
    assert bytes_of(answer.token_ids) == b""
