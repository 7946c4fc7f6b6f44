"""A model folder made on the spot: a tiny random Llama and a tokenizer of bytes.

Token ids are plain arithmetic, so tests can write them down: 0 is padding, 1 begins a text, 2 ends
it, 3 to 258 are the bytes 0 to 255, 259 is a word of two thousand letters. The model has a few ids
more, as padded embeddings do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from engine.tiny_models import build_tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
LONG_WORD, LONG_WORD_TEXT = FIRST_BYTE + 256, "very-" * 400
TOKENIZER_SIZE = LONG_WORD + 1
VOCAB_SIZE = TOKENIZER_SIZE + 5
MAX_MODEL_LEN = 1024

GENERATION_CONFIG: Mapping[str, object] = {
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "temperature": 0.75,
    "top_k": 40,
    # What many real files hold and this service does not serve: left out, not refused.
    "max_cache_len": 512,
    "cache_implementation": "hybrid",
    "transformers_version": "5.17.0",
}


def ids_of(text: str | bytes) -> list[int]:
    """Token ids of a text, without special ones."""
    data = text.encode() if isinstance(text, str) else text
    return [FIRST_BYTE + byte for byte in data]


def bytes_of(token_ids: list[int]) -> bytes:
    """The bytes behind token ids; special and unknown ones have none."""
    return bytes(i - FIRST_BYTE for i in token_ids if FIRST_BYTE <= i < LONG_WORD)


def save_tiny_folder(folder: Path) -> Path:
    """Make the folder; returns it."""
    model = build_tiny("llama", vocab_size=VOCAB_SIZE, max_position_embeddings=MAX_MODEL_LEN)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG))
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, a text begins with `<s>`."""
    special = ["<pad>", "<s>", "</s>"]
    words = [*special, *(_letter(byte) for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    tokenizer.add_tokens([AddedToken(LONG_WORD_TEXT, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def _letter(byte: int) -> str:
    """GPT-2's stand-in for a byte: itself where it is printable, else one from 256 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    others = [b for b in range(256) if b not in printable]
    return chr(256 + others.index(byte))
