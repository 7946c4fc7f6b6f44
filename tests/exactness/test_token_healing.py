"""Token healing: the prompt in use is transformers', and the text follows it, drafted or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness.model_pairs import VOCAB_SIZE, ModelPair, byte_tokenizer
from exactness.reference import Reference
from exactness.running import PLAIN, SYNCHRONOUS, RunningTarget, num_drafted, tokens
from outrider_client import Completion, GenerationConfig, SpeculationConfig
from outrider_target.decoding.healing import Healer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PROMPTS = [
    *("the tar", "def ma", " hello th", "the target decides the te", "0", "a", "return [a fo"),
    *("the draft only makes it arr", "a drafter that is s", "t", "the text; the d", "in (0, 1)  "),
]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 12,
    "num_assistant_tokens": 4,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
}


def generate(
    running: RunningTarget, prompt: str | list[int], speculation: SpeculationConfig, **options: Any
) -> Completion:
    config = GenerationConfig(token_healing=True, **OPTIONS, **options)
    return running.client.generate(prompt, config, seed=1, speculation=speculation)


def healed_ids(completion: Completion) -> list[int]:
    assert completion.healed_prompt is not None
    assert completion.usage.prompt_tokens == len(completion.healed_prompt.token_ids)
    return completion.healed_prompt.token_ids


def chosen_by_hand(pair: ModelPair, reference: Reference, text: str) -> list[int]:
    """The stripped prompt with the best token that begins with the text of its last one."""
    *rest, last = pair.tokenizer.encode(text.strip())
    if not rest:
        return [last]
    logits = reference.next_logits(rest)
    logits[last] += 1.0
    tail = pair.tokenizer.decode(last)
    texts = pair.tokenizer.batch_decode([[i] for i in range(VOCAB_SIZE)])
    alike = [i for i, piece in enumerate(texts) if piece.startswith(tail)]
    return [*rest, max(alike, key=lambda i: logits[i])]


@pytest.fixture(scope="module")
def with_all_ids(pair: ModelPair) -> PreTrainedTokenizerFast:
    """transformers' `heal_tokens` fails without a beginning and padding."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token = "<end>"
    return tokenizer


def test_prompts_are_healed_as_by_transformers_and_the_text_follows_them(
    pair: ModelPair,
    reference: Reference,
    with_all_ids: PreTrainedTokenizerFast,
    drafted_target: RunningTarget,
) -> None:
    num_changed = num_compared = 0
    for text in PROMPTS:
        prompt = pair.tokenizer.encode(text)
        expected = chosen_by_hand(pair, reference, text)
        # Its bias of 10 may lose against a token that does not begin with the last one's text, and
        # where that begins with a space, it finds none at all.
        theirs = reference.model.heal_tokens(torch.tensor([prompt]), with_all_ids)[0].tolist()
        tail = pair.tokenizer.decode(pair.tokenizer.encode(text.strip())[-1])
        if pair.tokenizer.decode(theirs[-1]).startswith(tail) and tail[0] != " ":
            assert theirs == expected
            num_compared += 1
        for given in (text, prompt):
            plain = generate(drafted_target, given, PLAIN)
            assert healed_ids(plain) == expected
            assert plain.healed_prompt is not None
            assert plain.healed_prompt.text == pair.tokenizer.decode(expected)
            assert plain.healed_prompt.text.startswith(text.strip())
        num_changed += expected != pair.tokenizer.encode(text.strip())
        assert plain.token_ids == reference.greedy(expected, {"max_new_tokens": 12})
        drafted = [
            generate(drafted_target, text, how)
            for how in (SYNCHRONOUS, SpeculationConfig(method="combined"))
        ]
        assert tokens(drafted) == tokens([plain, plain])
        assert [healed_ids(one) for one in drafted] == [expected, expected]
        assert num_drafted(drafted[:1]) > 0
    assert 3 <= num_changed < len(PROMPTS)
    assert num_compared >= 6
    drafted_target.assert_nothing_left()


def test_a_prompt_is_healed_the_same_whatever_is_sampled(drafted_target: RunningTarget) -> None:
    """transformers samples here where the model's own defaults sample."""
    config = GenerationConfig(
        token_healing=True, do_sample=True, temperature=9.0, num_return_sequences=2, **OPTIONS
    )
    completions = [
        drafted_target.client.generate("the tar", config, seed=seed, speculation=SYNCHRONOUS)
        for seed in range(4)
    ]
    assert len({tuple(healed_ids(one)) for one in completions}) == 1
    assert len({tuple(one.token_ids) for one in completions}) > 1


def test_special_tokens_and_what_a_tokenizer_does_not_know_stay_in_the_prompt(
    pair: ModelPair, drafted_target: RunningTarget
) -> None:
    end = pair.tokenizer.eos_token_id
    head = [*pair.tokenizer.encode(" one "), end]
    prompt = [*head, *pair.tokenizer.encode("the tar ")]
    healed = healed_ids(generate(drafted_target, prompt, PLAIN))
    assert healed[: len(head)] == head
    assert pair.tokenizer.decode(healed[len(head) :]).startswith("the tar")
    assert healed_ids(generate(drafted_target, head, PLAIN)) == head


def test_half_a_character_is_completed_by_tokens_that_begin_with_its_bytes() -> None:
    """transformers compares decoded text, in which half a character has none."""
    tokenizer = byte_tokenizer()
    healer = Healer(tokenizer, vocab_size=VOCAB_SIZE)
    pieces = {token_id: piece for piece, token_id in tokenizer.get_vocab().items()}
    prompt = tokenizer.encode("déjà v für alle F")
    cut = healer._cut(prompt)
    last = pieces[cut.prompt[-1]]
    assert len(cut.candidates) == sum(piece.startswith(last) for piece in pieces.values())
    assert cut.prompt[-1] in cut.candidates


def test_a_space_at_the_start_of_the_last_word_counts() -> None:
    """With such tokenizers transformers decodes the last token alone, which loses the space."""
    words = ["<unk>", "▁", "t", "▁t", "▁th", "th", "▁the", "e", "h", "▁a"]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0 * i) for i, word in enumerate(words)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    cut = Healer(fast, vocab_size=9)._cut(fast.encode("a th"))
    named = sorted(fast.convert_ids_to_tokens(cut.candidates))
    assert (fast.convert_ids_to_tokens(cut.prompt), named) == (["▁a", "▁th"], ["▁th", "▁the"])
