"""What a request may say about speculation.

Mirrors `SpeculationConfig` of `speculation.proto` in Python's own types. Knows nothing of calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from outrider.v1 import speculation_pb2
from outrider_contract.json_values import shortest_float

from outrider_client._errors import InvalidRequestError

_METHODS: Mapping[str, speculation_pb2.DraftMethod.ValueType] = {
    "remote": speculation_pb2.DRAFT_METHOD_REMOTE,
    "prompt-lookup": speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP,
    "combined": speculation_pb2.DRAFT_METHOD_COMBINED,
    "early-exit": speculation_pb2.DRAFT_METHOD_EARLY_EXIT,
    "grammar": speculation_pb2.DRAFT_METHOD_GRAMMAR,
    "suffix": speculation_pb2.DRAFT_METHOD_SUFFIX,
    "prediction": speculation_pb2.DRAFT_METHOD_PREDICTION,
    "none": speculation_pb2.DRAFT_METHOD_NONE,
}
_VERIFICATIONS: Mapping[str, speculation_pb2.Verification.ValueType] = {
    "exact": speculation_pb2.VERIFICATION_EXACT,
    "speculative-sampling": speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING,
}
_PACINGS: Mapping[str, speculation_pb2.DraftPacing.ValueType] = {
    "adaptive": speculation_pb2.DRAFT_PACING_ADAPTIVE,
    "synchronous": speculation_pb2.DRAFT_PACING_SYNCHRONOUS,
}
_LOOKUP_RULES: Mapping[str, speculation_pb2.LookupRule.ValueType] = {
    "latest": speculation_pb2.LOOKUP_RULE_LATEST,
    "first": speculation_pb2.LOOKUP_RULE_FIRST,
}
_WORDS: Mapping[str, Mapping[str, int]] = {
    "method": _METHODS,
    "verification": _VERIFICATIONS,
    "pacing": _PACINGS,
    "lookup_rule": _LOOKUP_RULES,
}
_MAX_SALT = 256
_RANGES = {
    "max_assistant_tokens": (1, 64),
    "run_ahead": (0, 64),
    "draft_fan_out": (1, 16),
    "draft_tree_rows": (0, 64),
    "draft_timeout_ms": (0, 60_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """How a request is speculated.

    None of it can change the text, but for `verification`; all of it changes speed only.

    Every field may be left out: the server decides then.

    Raises:
        InvalidRequestError: A field is outside its range.
    """

    enabled: bool | None = None
    """Whether to speculate at all. False is plain decoding."""

    method: (
        Literal[
            "remote",
            "prompt-lookup",
            "suffix",
            "prediction",
            "combined",
            "early-exit",
            "grammar",
            "none",
        ]
        | None
    ) = None
    """Which drafter proposes: a draft service, prompt lookup in the target service, a suffix tree
    there (the request's own text and recent outputs of the same caller), the `prediction`, all of
    these side by side, the target's own first layers (`assistant_early_exit` says how many), nobody
    but the form of a structured output, or none."""

    verification: Literal["exact", "speculative-sampling"] | None = None
    """How draft tokens are accepted: by agreement with the target's own sample, or by ratio, as a
    block. By ratio the text still has the distribution that it has without a drafter, but the same
    seed gives the same text only with the same drafts."""

    pacing: Literal["adaptive", "synchronous"] | None = None
    """How long a round waits for the drafter: as long as it pays, or for its whole answer."""

    max_assistant_tokens: int | None = None
    """Upper bound of the window in tokens, whatever the schedule says, in [1, 64]."""

    run_ahead: int | None = None
    """Tokens drafted beyond the window while the target verifies, in [0, 64]."""

    draft_fan_out: int | None = None
    """Guesses for each position of the draft that are continued meanwhile, in [1, 16]."""

    draft_tree_rows: int | None = None
    """Rows that a round may spend on verifying such guesses beside the draft, in [0, 64]."""

    draft_timeout_ms: int | None = None
    """Longest wait for the drafter in one round, in milliseconds, in [0, 60000]."""

    draft_temperature: float | None = None
    """Calibrates the drafter: its log-probabilities are divided by this; greater than 0.
    None: the server takes what has agreed most."""

    report_rounds: bool | None = None
    """Whether `SpeculationStats.rounds` lists each round."""

    prediction_text: str | None = None
    """The text that the answer is expected to be, or to be much like: an edited file, say. It is
    drafted from, and found again where the answer departs from it. Alone it asks for the method
    "combined"; "prediction" drafts from nothing else."""

    prediction_token_ids: Sequence[int] | None = None
    """Likewise as token ids; not both."""

    cache_salt: str | None = None
    """Outputs are remembered for drafting among requests of equal salt only, up to 256 bytes: one
    per end user keeps these apart."""

    lookup_rule: Literal["latest", "first"] | None = None
    """Which earlier occurrence prompt lookup in the target service continues: the latest, or the
    first, as transformers does."""

    def __post_init__(self) -> None:
        for name in ("enabled", "report_rounds"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise _invalid(name, "must be true or false", value)
        for name, words in _WORDS.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value in words):
                raise _invalid(name, f"must be one of {', '.join(words)}", value)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and least <= value <= most):
                raise _invalid(name, f"must be an integer in [{least}, {most}]", value)
        value = self.draft_temperature
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise _invalid("draft_temperature", "must be a finite number greater than 0", value)
        self._check_texts()

    def to_message(self) -> speculation_pb2.SpeculationConfig:
        """The message of the contract."""
        unset = "UNSPECIFIED"
        return speculation_pb2.SpeculationConfig(
            enabled=self.enabled,
            method=_METHODS.get(self.method or unset, speculation_pb2.DRAFT_METHOD_UNSPECIFIED),
            verification=_VERIFICATIONS.get(
                self.verification or unset, speculation_pb2.VERIFICATION_UNSPECIFIED
            ),
            pacing=_PACINGS.get(self.pacing or unset, speculation_pb2.DRAFT_PACING_UNSPECIFIED),
            max_assistant_tokens=self.max_assistant_tokens,
            run_ahead=self.run_ahead,
            draft_fan_out=self.draft_fan_out,
            draft_tree_rows=self.draft_tree_rows,
            draft_timeout_ms=self.draft_timeout_ms,
            draft_temperature=self.draft_temperature,
            report_rounds=self.report_rounds,
            prediction_text=self.prediction_text or "",
            prediction_token_ids=self.prediction_token_ids,
            cache_salt=self.cache_salt or "",
            lookup_rule=_LOOKUP_RULES.get(
                self.lookup_rule or unset, speculation_pb2.LOOKUP_RULE_UNSPECIFIED
            ),
        )

    def _check_texts(self) -> None:
        salt, text, token_ids = self.cache_salt, self.prediction_text, self.prediction_token_ids
        if salt is not None and not (isinstance(salt, str) and len(salt.encode()) <= _MAX_SALT):
            raise _invalid("cache_salt", f"must be a text of at most {_MAX_SALT} bytes", salt)
        if text is not None and not isinstance(text, str):
            raise _invalid("prediction_text", "must be a text", text)
        if token_ids is None:
            return
        if text is not None:
            raise _invalid("prediction_text", "is given as token ids, too; one will do", text)
        sized = isinstance(token_ids, Sequence) and not isinstance(token_ids, str | bytes)
        if not (sized and all(type(each) is int and 0 <= each < 2**32 for each in token_ids)):
            raise _invalid("prediction_token_ids", "must be token ids", token_ids)
        object.__setattr__(self, "prediction_token_ids", tuple(token_ids))

    @classmethod
    def from_message(cls, message: speculation_pb2.SpeculationConfig) -> SpeculationConfig:
        """The settings that a server reports; a word of a newer release counts as not given."""
        config = object.__new__(cls)  # what a server has in force is not ours to validate
        for field in fields(cls):
            object.__setattr__(config, field.name, None)
        for descriptor, value in message.ListFields():
            if descriptor.name in _WORDS:
                words = {number: word for word, number in _WORDS[descriptor.name].items()}
                value = words.get(value)
            elif isinstance(value, float):
                value = shortest_float(value)
            elif descriptor.name == "prediction_token_ids":
                value = tuple(value)
            object.__setattr__(config, descriptor.name, value)
        return config

    def to_dict(self) -> dict[str, object]:
        """The fields that are given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def _invalid(name: str, must: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(f"speculation.{name}: {must}, got {value!r}", field=name)
