"""A vocabulary of single letters, for forms that are written as text."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Sequence

from outrider_target.constraints.constraint import Form
from outrider_target.constraints.grammar import GrammarCompiler
from outrider_target.requests.request import Structure, TextForm
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 97
EOS = 2
_LETTERS = (string.ascii_letters + string.digits + string.punctuation + "Ġ")[: VOCAB_SIZE - 3]


def ids_of(text: str) -> list[int]:
    """The tokens of a text."""
    return [3 + _LETTERS.index(letter) for letter in text]


def text_of(token_ids: Sequence[int]) -> str:
    """The text of tokens, without its end."""
    return "".join(_LETTERS[i - 3] for i in token_ids if i != EOS)


def letters_compiler() -> GrammarCompiler:
    """Compiles for this vocabulary."""
    words = ["<pad>", "<s>", "</s>", *_LETTERS]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    return GrammarCompiler(fast, vocab_size=VOCAB_SIZE)


def compiled(compiler: GrammarCompiler, regex: str) -> Form:
    """A regular expression, compiled."""
    structure = Structure("structured_output.regex", TextForm.REGEX, regex)
    return asyncio.run(compiler.compile(structure))
