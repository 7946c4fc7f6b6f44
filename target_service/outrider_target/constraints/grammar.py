"""Compiles the form of a text into something that can be followed token by token.

On llguidance, which is optional and imported when the first request needs it; lists of token ids
need nothing. Knows nothing of requests beyond the form they want.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from outrider_runtime.errors import InvalidRequest, Overloaded, UnsupportedOption
from outrider_runtime.tokenizer import backend
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from outrider_target.constraints.constraint import Form
from outrider_target.constraints.grammar_constraint import GrammarConstraint
from outrider_target.constraints.token_trie import TokenTrie
from outrider_target.requests.request import Structure, TextForm

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

INSTALL = "pip install 'outrider[structured]'"

_END = "<|outrider: end of text|>"
"""A token added for the matcher alone, so that a request's end-of-sequence tokens, whichever they
are, need not be known when the vocabulary is read."""

_MAX_AT_ONCE = 2
"""Grammars compiled at a time, each in a thread of a pool that nothing else waits for."""
_MAX_SECONDS = 5.0
"""That one may take, and that one may wait for its turn before."""
_MAX_TOKEN_BYTES = 255
"""Of a token that llguidance can hold; it panics at longer ones."""
_MAX_LEXER_STATES = 20_000
"""A state takes 1 to 2 kB."""


class Grammar:
    """A compiled form; each sequence of a request follows it on its own."""

    def __init__(self, matcher: LLMatcher, field: str, *, end_id: int, vocab_size: int) -> None:
        self._new_matcher: Callable[[], LLMatcher] = matcher.deep_copy
        self._field = field
        self._end_id = end_id
        self._vocab_size = vocab_size

    def start(self, eos_token_ids: Sequence[int]) -> GrammarConstraint:
        """See `constraint.Form`."""
        return GrammarConstraint(
            self._new_matcher,
            field=self._field,
            end_id=self._end_id,
            eos_token_ids=eos_token_ids,
            vocab_size=self._vocab_size,
        )


class _Vocabulary(NamedTuple):
    """The tokens as llguidance reads them."""

    tokens: LLTokenizer
    end_id: int


class GrammarCompiler:
    """Compiles for one tokenizer. Lives in the asyncio loop; the work is done in threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None, *, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._vocabulary: _Vocabulary | None = None
        self._reading = threading.Lock()
        self._turns = asyncio.Semaphore(_MAX_AT_ONCE)
        self._threads = ThreadPoolExecutor(_MAX_AT_ONCE, thread_name_prefix="grammar")

    async def compile(self, structure: Structure) -> Form:
        """Compile a form.

        Raises:
            InvalidRequest: It makes no sense, is too costly, or no text has it; names the field.
            UnsupportedOption: llguidance is not installed.
            Overloaded: Others are being compiled, and take long.
        """
        if structure.form is TextForm.TOKEN_CHOICES:
            return TokenTrie(
                structure.token_lists, field=structure.field, vocab_size=self._vocab_size
            )
        loop = asyncio.get_running_loop()
        vocabulary = self._vocabulary
        if vocabulary is None:
            vocabulary = await loop.run_in_executor(self._threads, self._read_vocabulary)
        await self._begin_turn()
        work = loop.run_in_executor(self._threads, self._compile, structure, vocabulary)
        work.add_done_callback(self._end_turn)
        try:
            return await asyncio.wait_for(asyncio.shield(work), _MAX_SECONDS)
        except TimeoutError:
            why = f"takes longer than {_MAX_SECONDS:g} s to compile"
            raise InvalidRequest(structure.field, why) from None

    async def _begin_turn(self) -> None:
        """Wait for a turn. Those who have one may never end it: nobody waits for ever."""
        try:
            async with asyncio.timeout(_MAX_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            why = "the forms of other requests take long to compile; retry later"
            raise Overloaded(_MAX_SECONDS, why) from None

    def _end_turn(self, work: asyncio.Future[Grammar]) -> None:
        """A thread cannot be stopped: the turn ends with its work, whether or not one waits."""
        self._turns.release()
        if not work.cancelled():
            work.exception()  # else asyncio complains about those that nobody waits for

    def _read_vocabulary(self) -> _Vocabulary:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise UnsupportedOption(
                "structured_output", f"this server lacks llguidance; install it with {INSTALL}"
            ) from None
        assert self._tokenizer is not None, "checked with the request"
        with self._reading:
            if self._vocabulary is None:
                copy = Tokenizer.from_str(_readable(backend(self._tokenizer).to_str()))
                copy.no_padding()
                copy.no_truncation()
                copy.add_special_tokens([AddedToken(_END, special=True)])
                end_id = copy.token_to_id(_END)
                assert end_id is not None, "just added"
                with _panics_refused("structured_output", "cannot read this model's tokenizer"):
                    tokens = LLTokenizer(copy.to_str(), eos_token=end_id)
                self._vocabulary = _Vocabulary(tokens, end_id)
            return self._vocabulary

    def _compile(self, structure: Structure, vocabulary: _Vocabulary) -> Grammar:
        from llguidance import LLMatcher, LLParserLimits

        readers: dict[TextForm, Callable[[str], str]] = {
            TextForm.JSON_SCHEMA: LLMatcher.grammar_from_json_schema,
            TextForm.REGEX: LLMatcher.grammar_from_regex,
            TextForm.GRAMMAR: LLMatcher.grammar_from_lark,
            TextForm.CHOICES: LLMatcher.grammar_from_lark,
        }
        with _panics_refused(structure.field, "cannot compile it"):
            matcher = LLMatcher(
                vocabulary.tokens,
                readers[structure.form](structure.source),
                log_level=0,
                limits=LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False),
            )
        if matcher.is_error():
            raise InvalidRequest(structure.field, matcher.get_error())
        grammar = Grammar(
            matcher, structure.field, end_id=vocabulary.end_id, vocab_size=self._vocab_size
        )
        # The first look is the dearest one, and finds what no text can satisfy: both belong here.
        grammar.start(()).admissible(())
        return grammar


def _readable(tokenizer: str) -> str:
    """A tokenizer's JSON in which added tokens that are too long have no text any more."""
    state = json.loads(tokenizer)
    for token in state.get("added_tokens") or ():
        if len(token["content"].encode()) > _MAX_TOKEN_BYTES:
            token.update(content=f"<|outrider: token {token['id']}|>", special=True)
    return json.dumps(state)


@contextmanager
def _panics_refused(field: str, what: str) -> Iterator[None]:
    """A panic in llguidance is no Exception and would take down whoever it meets."""
    try:
        yield
    except BaseException as fault:
        if type(fault).__name__ != "PanicException":
            raise
        raise UnsupportedOption(field, f"llguidance {what}") from None
