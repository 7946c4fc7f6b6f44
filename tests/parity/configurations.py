"""Random configurations of every mode, for hypothesis.

A new field is a line in `Fields`, a new mode one in `MODES`; a test misses those that are honoured
and not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from exactness.running import SYNCHRONOUS, Request
from hypothesis import strategies as st
from outrider_client import SpeculationConfig
from parity.additions import Additions, additions
from parity.fields import REPORTS, Fields, Group, Options, Strategies, Text, floats


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
        # Where a form leaves one text, its library leaves the tokenizer's own tokens of it alone.
        form = self.additions.form
        spelled = form is not None and bool(form.texts)
        return MODES[self.mode].compared and not astray and not spelled

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
        {"do_sample": st.booleans(), "guidance_scale": floats(-0.5, 3.0)},
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
        {"penalty_alpha": floats(0.1, 0.9), "top_k": st.integers(2, 5)},
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
