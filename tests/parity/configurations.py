"""Random configurations of every mode, for hypothesis.

Token ids come mostly from texts that the model writes, so that what is asked for has something to
bite on: an end of sequence that comes, a phrase that is about to be completed.

A new field is a line in `Fields`, a new mode one in `MODES`; a test misses those that are honoured
and not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from exactness.running import SYNCHRONOUS, Request
from hypothesis import strategies as st
from outrider_client import SpeculationConfig
from parity.additions import Additions, additions

LONGEST_OUTPUT = 12

Options = Mapping[str, Any]
"""Fields of GenerationConfig, in transformers' JSON form."""
Strategies = Mapping[str, st.SearchStrategy[Any]]
"""Values by field."""


class Text(NamedTuple):
    """A prompt, and what the model greedily makes of it."""

    prompt: Sequence[int]
    continuation: Sequence[int]
    pieces: Sequence[str]
    """Texts of some of its tokens."""


class Configuration(NamedTuple):
    """A request, and a way to speculate that must not matter."""

    mode: str
    request: Request
    speculation: SpeculationConfig
    num_top_log_probs: int | None
    """Alternatives to ask log-probabilities of; None: do not ask for any."""
    additions: Additions = Additions()

    @property
    def compared(self) -> bool:
        """Whether transformers has a right answer."""
        # Its SynthID keeps what it has seen by row, and rows are other beams after every step.
        mark = self.request.options.get("watermarking_config", {})
        astray = "num_beams" in self.request.options and "ngram_len" in mark
        return MODES[self.mode].compared and not astray

    @property
    def asks_the_drafter(self) -> bool:
        """Whether rounds wait for it, and it knows no form: it drafts for certain."""
        of_another = {"prompt_lookup_num_tokens", "assistant_early_exit"}
        asked = self.speculation is SYNCHRONOUS and MODES[self.mode].drafted
        asked = asked and self.additions.form is None
        return asked and not of_another & self.request.options.keys()


SPECULATIONS = {
    "synchronous": SYNCHRONOUS,
    "adaptive": SpeculationConfig(run_ahead=8, draft_timeout_ms=60_000),
    "combined": SpeculationConfig(method="combined"),
    "prompt lookup": SpeculationConfig(method="prompt-lookup"),
}
WATERMARKS: Sequence[Options] = (
    {"bias": 3.0},
    {"greenlist_ratio": 0.5, "bias": -2.0, "hashing_key": 17},
    {"bias": 3.0, "seeding_scheme": "selfhash", "context_width": 3},
    {"ngram_len": 3, "keys": [654, 400, 836, 123], "context_history_size": 2},
    {"ngram_len": 5, "keys": [17], "skip_first_ngram_calls": True},
)
DRAFTING: Strategies = {
    "num_assistant_tokens": st.integers(1, 9),
    "num_assistant_tokens_schedule": st.sampled_from(
        ["constant", "heuristic", "heuristic_transient"]
    ),
    "assistant_confidence_threshold": st.sampled_from([0.0, 0.4]),
    "prompt_lookup_num_tokens": st.integers(1, 8),
    "max_matching_ngram_size": st.integers(1, 4),
    "assistant_early_exit": st.just(1),
    "assistant_lookbehind": st.just(3),
    "target_lookbehind": st.just(3),
}
"""What concerns drafters alone."""
REPORTS: Strategies = {
    "output_scores": st.booleans(),
    "output_logits": st.booleans(),
    "output_hidden_states": st.booleans(),
    "output_attentions": st.booleans(),
    "return_dict_in_generate": st.booleans(),
}
"""What comes back beside the text."""
WITHOUT_EFFECT: Strategies = {
    "cache_implementation": st.sampled_from(["dynamic", "paged"]),
    "disable_compile": st.booleans(),
    "low_memory": st.booleans(),
    "transformers_version": st.just("4.57.0"),
}
NOT_TOLD = {*DRAFTING, *REPORTS, *WITHOUT_EFFECT}
"""What transformers is not told: some of it would make it another kind of generation."""


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers with few digits, which survive the 32 bits of the wire."""
    return st.integers(round(low * 1000), round(high * 1000)).map(lambda n: n / 1000)


class Fields:
    """Values of fields for one text."""

    def __init__(self, text: Text, vocab_size: int) -> None:
        familiar = st.sampled_from(sorted({*text.continuation, *text.prompt}))
        self._prompt_length = len(text.prompt)
        self._token = familiar | familiar | st.integers(0, vocab_size - 1)
        self._tokens = st.lists(self._token, min_size=1, max_size=4, unique=True)
        pairs = zip(text.continuation, text.continuation[1:], strict=False)
        self._phrases = st.lists(
            self._tokens.map(lambda tokens: tokens[:2]) | st.sampled_from(list(map(list, pairs))),
            min_size=1,
            max_size=3,
            unique_by=tuple,
        )
        self._stops = st.lists(
            st.sampled_from([*text.pieces, "th", "\n", "not to be found"]),
            min_size=1,
            max_size=2,
            unique=True,
        )

    def limits(self) -> Strategies:
        """One of them has to be."""
        length = st.integers(1, LONGEST_OUTPUT)
        return {
            "max_new_tokens": length,
            "max_length": length.map(lambda n: self._prompt_length + n),
        }

    def ends(self) -> Strategies:
        """What ends a text, and what keeps it from ending."""
        return {
            "eos_token_id": self._token | self._tokens,
            "forced_eos_token_id": self._token | self._tokens,
            "min_length": st.integers(0, self._prompt_length + 6),
            "min_new_tokens": st.integers(0, 6),
            "exponential_decay_length_penalty": st.tuples(st.integers(0, 6), _floats(0.9, 1.6)),
            "stop_strings": self._stops,
        }

    def edits(self) -> Strategies:
        """What changes scores."""
        biased = self._phrases.flatmap(
            lambda phrases: st.tuples(*(st.tuples(st.just(p), _floats(-8, 8)) for p in phrases))
        )
        return {
            "repetition_penalty": _floats(0.7, 1.8),
            "encoder_repetition_penalty": _floats(0.6, 2.0),
            "no_repeat_ngram_size": st.integers(0, 3),
            "encoder_no_repeat_ngram_size": st.integers(0, 3),
            "bad_words_ids": self._phrases,
            "sequence_bias": biased.map(lambda entries: [list(entry) for entry in entries]),
            "suppress_tokens": self._tokens,
            "begin_suppress_tokens": self._tokens,
            "forced_bos_token_id": self._token,
            "renormalize_logits": st.booleans(),
            "remove_invalid_values": st.booleans(),
            "watermarking_config": st.sampled_from(WATERMARKS),
        }

    def truncations(self) -> Strategies:
        """What concerns sampling; greedy decoding must not heed it."""
        return {
            "temperature": _floats(0.2, 2.0),
            "top_k": st.sampled_from([0, 1, 2, 5, 20, 400]),
            "top_p": st.just(0.0) | _floats(0.05, 0.999) | st.just(1.0),
            "min_p": st.just(0.0) | _floats(0.001, 0.5),
            "top_h": _floats(0.05, 0.98),
            "typical_p": _floats(0.05, 0.98),
            "epsilon_cutoff": _floats(0.001, 0.1),
            "eta_cutoff": _floats(0.001, 0.1),
        }

    def several(self) -> Strategies:
        """More than one text."""
        return {"num_return_sequences": st.integers(1, 3)}

    def beams(self) -> Strategies:
        """What concerns beam search."""
        return {
            "early_stopping": st.sampled_from([False, True, "never"]),
            "length_penalty": _floats(-1, 2),
            "num_return_sequences": st.integers(1, 4),
        }

    def quiet(self) -> Strategies:
        """What has no effect on the text."""
        return {
            "prefill_chunk_size": st.integers(1, 20),
            "pad_token_id": self._token,
            "bos_token_id": self._token,
            **REPORTS,
            **WITHOUT_EFFECT,
        }

    def drafting(self) -> Strategies:
        """What concerns drafters alone."""
        return DRAFTING


Group = Callable[[Fields], Strategies]


class Mode(NamedTuple):
    """What brings a request into a mode."""

    always: Strategies
    groups: Sequence[Group]
    """Of fields, beside those that any request may have."""
    share: int = 1
    """How many of a batch are in this mode."""
    compared: bool = True
    """Whether texts are compared with transformers' here, not only those with and without drafts.
    DoLa and contrastive search are in transformers no more."""
    drafted: bool = True
    """Whether anything is drafted in it."""
    reported: bool = True
    """Whether log-probabilities and tensors may be asked for."""
    additions: Sequence[str] = ("logits_processors", "stopping_criteria", "form")


ANY_MODE: Sequence[Group] = (Fields.ends, Fields.edits, Fields.drafting, Fields.quiet)
MODES: Mapping[str, Mode] = {
    "greedy": Mode({"do_sample": st.just(False)}, [Fields.truncations], share=3),
    "sampling": Mode({"do_sample": st.just(True)}, [Fields.truncations, Fields.several], share=3),
    "guidance": Mode(
        {"do_sample": st.booleans(), "guidance_scale": _floats(-0.5, 3.0)},
        [Fields.truncations],
        additions=("negative_prompt", "logits_processors", "stopping_criteria", "form"),
    ),
    "beam search": Mode(
        {"num_beams": st.integers(2, 4)},
        [Fields.truncations, Fields.beams],
        drafted=False,
        reported=False,
        additions=("logits_processors", "stopping_criteria"),
    ),
    "beam sampling": Mode(
        {"num_beams": st.integers(2, 4), "do_sample": st.just(True)},
        [Fields.truncations, Fields.beams],
        drafted=False,
        reported=False,
        additions=("logits_processors", "stopping_criteria"),
    ),
    "DoLa": Mode(
        {
            "do_sample": st.booleans(),
            "dola_layers": st.sampled_from(["low", "high"]) | st.just([0]),
        },
        [Fields.truncations],
        compared=False,
    ),
    "contrastive search": Mode(
        {"penalty_alpha": _floats(0.1, 0.9), "top_k": st.integers(2, 5)},
        [],
        compared=False,
        drafted=False,
    ),
}


def fields_tried() -> set[str]:
    """All fields that a configuration may have."""
    fields = Fields(Text([1], [2, 3], []), 4)
    groups = [
        *ANY_MODE,
        Fields.limits,
        *(group for mode in MODES.values() for group in mode.groups),
    ]
    always = {name for mode in MODES.values() for name in mode.always}
    return always | {name for group in groups for name in group(fields)}


BATCH = [name for name, mode in MODES.items() for _ in range(mode.share)]
"""The modes of the configurations that are served side by side."""


@st.composite
def batches(draw: st.DrawFn, texts: Sequence[Text], vocab_size: int) -> list[Configuration]:
    """Configurations that are served side by side."""
    return [draw(configurations(name, texts, vocab_size)) for name in BATCH]


@st.composite
def configurations(
    draw: st.DrawFn, name: str, texts: Sequence[Text], vocab_size: int
) -> Configuration:
    """One configuration of a mode."""
    text = draw(st.sampled_from(texts))
    fields = Fields(text, vocab_size)
    chosen: dict[str, st.SearchStrategy[Any]] = dict(MODES[name].always)
    limits = fields.limits()
    limit = draw(st.sampled_from(sorted(limits)))
    chosen[limit] = limits[limit]
    for group in (*MODES[name].groups, *ANY_MODE):
        strategies = group(fields)
        for field in draw(st.lists(st.sampled_from(sorted(strategies)), max_size=4, unique=True)):
            chosen[field] = strategies[field]
    values = additions(text.continuation, [each.prompt for each in texts], vocab_size)
    added = draw(st.lists(st.sampled_from(MODES[name].additions), max_size=2, unique=True))
    reported = MODES[name].reported
    options = {
        field: draw(strategy)
        for field, strategy in chosen.items()
        if reported or field not in REPORTS
    }
    return Configuration(
        name,
        Request(text.prompt, consistent(options, text), draw(st.integers(0, 2**64 - 1))),
        SPECULATIONS[draw(st.sampled_from(sorted(SPECULATIONS)))],
        draw(st.none() | st.sampled_from([0, 3])) if reported else None,
        Additions(**{addition: draw(values[addition]) for addition in added}),
    )


def consistent(options: Options, text: Text) -> Options:
    """Without what transformers refuses, often with an error from deep inside; tested elsewhere."""
    options = dict(options)
    length = len(text.prompt)
    limit = options.get("max_new_tokens") or options["max_length"] - length
    if "min_new_tokens" in options:
        options["min_new_tokens"] = min(options["min_new_tokens"], limit)
    if "min_length" in options:
        options["min_length"] = min(options["min_length"], length + limit)
    if "forced_bos_token_id" in options or "forced_eos_token_id" in options:
        options.pop("suppress_tokens", None)
    forced = options.get("forced_eos_token_id")
    if (options.get("do_sample") or "num_beams" in options) and isinstance(forced, list):
        options["forced_eos_token_id"] = forced[:1]  # of equals, truncations and beams keep any
    if "num_beams" in options and "num_return_sequences" in options:
        several = min(options["num_beams"], options["num_return_sequences"])
        options["num_return_sequences"] = several
    if "eos_token_id" not in options:
        options.pop("exponential_decay_length_penalty", None)
    return options
