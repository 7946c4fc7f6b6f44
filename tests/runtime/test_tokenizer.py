"""Streamed text is the decoded whole, cut between characters; fingerprints tell ids apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider_runtime.errors import StartupError
from outrider_runtime.tokenizer import StreamDecoder, fingerprint, load_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
END = "<|end|>"


def byte_level() -> Tokenizer:
    """One token per byte, a few merges (some across characters), two added tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    smile = _as_letters("😀")
    merges = [("a", "b"), ("ab", "c"), (smile[0], smile[1]), ("c", smile[0]), (smile[3], "x")]
    vocab = {letter: i for i, letter in enumerate([*letters, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.add_tokens([AddedToken("ünïque", normalized=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Words with a leading space that the decoder strips once, and bytes for all else."""
    words = [
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "▁hello",
        "▁world",
        "é",
        "x",
        "▁日本",
    ]
    tokenizer = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _as_letters(text: str) -> str:
    # The letters by which byte-level BPE writes the bytes of a text.
    ((word, _),) = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    ).pre_tokenize_str(text)
    return word


def number(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


BYTES = byte_level()
NUM_IDS = BYTES.get_vocab_size()
FALLBACK = byte_fallback()
NOT_UTF8 = [i for i in range(NUM_IDS) if REPLACEMENT in BYTES.decode([i])]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SPLITS = st.lists(st.integers(1, 4), max_size=30)


def streamed(tokenizer: Tokenizer, ids: list[int], sizes: list[int], *, skip: bool) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    pieces, rest = [], ids
    for size in [*sizes, len(ids)]:
        pieces.append(decoder.push(rest[:size]))
        rest = rest[size:]
    return [*pieces, decoder.finish()]


@given(st.lists(st.integers(0, NUM_IDS + 3), max_size=40), SPLITS, st.booleans())
def test_pieces_of_random_ids_join_to_the_whole(
    ids: list[int], sizes: list[int], skip: bool
) -> None:
    pieces = streamed(BYTES, ids, sizes, skip=skip)
    assert "".join(pieces) == BYTES.decode(ids, skip_special_tokens=skip)


@given(
    st.lists(
        st.one_of(
            st.lists(st.sampled_from(NOT_UTF8), min_size=1, max_size=90),
            ANY_TEXT.map(lambda text: BYTES.encode(text).ids),
        ),
        max_size=4,
    )
)
@settings(max_examples=60)
def test_pieces_join_to_the_whole_though_much_of_it_is_not_utf8(parts: list[list[int]]) -> None:
    ids = [token_id for part in parts for token_id in part]
    pieces = streamed(BYTES, ids, [1] * len(ids), skip=True)
    assert "".join(pieces) == BYTES.decode(ids)


@given(ANY_TEXT.filter(lambda text: REPLACEMENT not in text), SPLITS)
def test_pieces_of_text_never_split_a_character(text: str, sizes: list[int]) -> None:
    ids = BYTES.encode(text).ids
    pieces = streamed(BYTES, ids, sizes, skip=True)
    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces)
    assert pieces[-1] == ""  # nothing is held back that is complete


@given(st.lists(st.sampled_from(["▁hello", "▁world", "x", "é", "▁日本", "▁", "€", "😀", "ü"])))
def test_byte_fallback_and_stripped_spaces_join_to_the_whole(words: list[str]) -> None:
    ids: list[int] = []
    for word in words:
        known = FALLBACK.token_to_id(word)
        ids += (
            [known]
            if known is not None
            else [number(FALLBACK, f"<0x{byte:02X}>") for byte in word.encode()]
        )
    pieces = streamed(FALLBACK, ids, [1] * len(ids), skip=True)
    assert "".join(pieces) == FALLBACK.decode(ids)
    assert all(REPLACEMENT not in piece for piece in pieces)


def test_a_character_of_four_tokens_comes_whole_with_its_last() -> None:
    ids = [number(BYTES, letter) for letter in _as_letters("😀")]
    decoder = StreamDecoder(BYTES)
    assert [decoder.push([token_id]) for token_id in ids] == ["", "", "", "😀"]
    assert decoder.finish() == ""


def test_an_unfinished_character_at_the_end_becomes_one_replacement() -> None:
    ids = [number(BYTES, letter) for letter in _as_letters("a😀")]
    decoder = StreamDecoder(BYTES)
    assert decoder.push(ids[:-1]) == "a"
    assert decoder.finish() == REPLACEMENT
    assert decoder.finish() == ""


def test_text_before_an_unfinished_character_is_not_held_back() -> None:
    # One token that ends a letter and begins an emoji.
    token_id = number(BYTES, "c" + _as_letters("😀")[0])
    assert StreamDecoder(BYTES).push([token_id]) == "c"


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, f"a{END}b")])
def test_special_tokens_leave_text_only_when_asked_to(skip: bool, text: str) -> None:
    ids = [number(BYTES, token) for token in ("a", END, "b")]
    assert "".join(streamed(BYTES, ids, [1, 1], skip=skip)) == text


def test_with_the_prompt_as_context_the_first_piece_keeps_its_space() -> None:
    hello, world = number(FALLBACK, "▁hello"), number(FALLBACK, "▁world")
    assert StreamDecoder(FALLBACK).push([world]) == "world"
    assert StreamDecoder(FALLBACK, context=[hello]).push([world]) == " world"


@pytest.mark.parametrize("token", [END, _as_letters("😀")[0]])
def test_the_work_per_token_does_not_grow_with_the_text(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    real = StreamDecoder._decode

    def counting(self: StreamDecoder, ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return real(self, ids)

    monkeypatch.setattr(StreamDecoder, "_decode", counting)
    decoder = StreamDecoder(BYTES)
    for _ in range(500):
        decoder.push([number(BYTES, token)])
    assert 0 < longest < 64 or token == END
    decoder.finish()


def wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def _add_token(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens(["another"])


def _other_decoder(tokenizer: Tokenizer) -> None:
    tokenizer.decoder = decoders.WordPiece()


def _other_pre_tokenizer(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize("change", [_add_token, _other_decoder, _other_pre_tokenizer])
def test_what_changes_the_meaning_of_ids_changes_the_fingerprint(
    change: Callable[[Tokenizer], None],
) -> None:
    changed = byte_level()
    change(changed)
    assert fingerprint(wrapped(changed)) != fingerprint(wrapped(byte_level()))


def test_another_merge_or_word_changes_the_fingerprint() -> None:
    state = json.loads(byte_level().to_str())
    state["model"]["merges"].pop()
    fewer = Tokenizer.from_str(json.dumps(state))
    state = json.loads(byte_level().to_str())
    vocab = state["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    swapped = Tokenizer.from_str(json.dumps(state))
    assert len({fingerprint(wrapped(t)) for t in (byte_level(), fewer, swapped)}) == 3


def test_another_end_of_text_changes_the_fingerprint() -> None:
    assert fingerprint(wrapped(byte_level(), eos_token=END)) != fingerprint(wrapped(byte_level()))


def test_padding_truncation_and_post_processing_do_not_change_the_fingerprint() -> None:
    plain = fingerprint(wrapped(byte_level(), eos_token=END))
    changed = byte_level()
    changed.enable_padding(length=7, pad_token=END, pad_id=number(changed, END))
    changed.enable_truncation(3)
    changed.post_processor = processors.ByteLevel(trim_offsets=False)
    assert fingerprint(wrapped(changed, eos_token=END)) == plain


def test_a_tokenizer_survives_its_folder_with_the_same_fingerprint(tmp_path: Path) -> None:
    tokenizer = wrapped(byte_level(), eos_token=END)
    tokenizer.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert fingerprint(loaded) == fingerprint(tokenizer)


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path) is None


def test_a_broken_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(StartupError) as caught:
        load_tokenizer(tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "\n" not in text


def test_importing_the_module_and_decoding_needs_no_torch() -> None:
    code = (
        "import sys, outrider_runtime.tokenizer, outrider_runtime.server,"
        " outrider_runtime.metrics, outrider_runtime.settings;"
        "print(sorted(sys.modules.keys() & {'torch', 'transformers', 'numpy'}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"
