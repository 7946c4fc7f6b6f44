"""transformers' plain `generate`, with the service's noise in place of its own (`seeded`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from exactness.reference import Reference, own_types
from exactness.running import Request
from outrider_runtime.plugins import PluginContext
from parity.additions import Additions
from parity.fields import LONGEST_OUTPUT, NOT_TOLD, Text
from parity.forms import Followers
from parity.functions import functions
from parity.seeded import NothingToChoose, seeded, seeded_beams
from transformers import PreTrainedTokenizerFast


class Law(NamedTuple):
    """What the tokens of a sequence were chosen from."""

    scores: torch.Tensor
    """After all processors, float32 [tokens, vocab]."""
    logits: torch.Tensor
    """Before them, likewise."""


class Expected(NamedTuple):
    """One sequence as transformers has it."""

    token_ids: list[int]
    law: Law | None = None
    """None with beams."""
    score: float | None = None
    """Of `sequences_scores`; None without beams."""
    beam_indices: Sequence[int] = ()
    """For each token the beam that it continued."""


class EndsAgainstItsForm(Exception):
    """A token that is forced on the end of a text does not fit its form.

    Where the text ends with it, a service need not have looked; where it could go on, it has.
    """


class Oracle:
    """A model folder in transformers.

    Args:
        folder: The model.
        tokenizer: For stop strings.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.reference = Reference(folder)
        self._tokenizer = tokenizer

    def sequences(self, request: Request, additions: Additions) -> list[Expected]:
        """The sequences of a request: of one beam search, or each from a `generate` of its own.

        Raises:
            NothingToChoose: at some point.
        """
        if "num_beams" in request.options:
            return self._beams(request, additions)
        count = request.options.get("num_return_sequences", 1)
        return [self._sequence(request, additions, index) for index in range(count)]

    def text(self, prompt: Sequence[int]) -> Text:
        """What the model makes of a prompt by itself."""
        token_ids = self.reference.greedy(prompt, {"max_new_tokens": LONGEST_OUTPUT})
        pieces = {self._tokenizer.decode(token_id) for token_id in token_ids}
        return Text(prompt, token_ids, sorted(each for each in pieces if "\ufffd" not in each))

    def _sequence(self, request: Request, additions: Additions, index: int) -> Expected:
        with seeded(request.seed or 0, index, len(request.prompt)):
            try:
                generated = self._generated(request, additions, num_return_sequences=1)
            except ValueError as fault:  # top_h looks at its scores; the others do not
                if "distribution Categorical" not in str(fault):
                    raise
                raise NothingToChoose from fault
        scores, logits = torch.cat(generated.scores), torch.cat(generated.logits)
        if not (scores.amax(-1) > -torch.inf).all():
            raise NothingToChoose
        token_ids = generated.sequences[0, len(request.prompt) :].tolist()
        self._check_form(token_ids, request, additions)
        return Expected(token_ids, Law(scores, logits))

    def _beams(self, request: Request, additions: Additions) -> list[Expected]:
        length = len(request.prompt)
        with seeded_beams(request.seed or 0):
            generated = self._generated(request, additions)
        found = []
        for row, indices, score in zip(
            generated.sequences, generated.beam_indices, generated.sequences_scores, strict=True
        ):
            number = int((indices >= 0).sum())
            token_ids = row[length : length + number].tolist()
            indices = indices[:number].tolist()
            found.append(Expected(token_ids, score=float(score), beam_indices=indices))
        return found

    def _check_form(self, token_ids: Sequence[int], request: Request, additions: Additions) -> None:
        """What is forced on a text may be against its form."""
        followers = self._followers(request, additions)
        if followers is None:
            return
        for number, token_id in enumerate(token_ids):
            allowed = followers.allowed(token_ids[:number])
            if token_id not in {*allowed, *self._eos_token_ids(request)}:
                ends = number == len(token_ids) - 1
                raise EndsAgainstItsForm if ends else NothingToChoose

    def _followers(self, request: Request, additions: Additions) -> Followers | None:
        if additions.form is None:
            return None
        return Followers(additions.form, self._eos_token_ids(request))

    def _eos_token_ids(self, request: Request) -> list[int]:
        own = self.reference.model.generation_config.eos_token_id
        eos = request.options.get("eos_token_id", own)
        return [eos] if isinstance(eos, int) else list(eos or ())

    def _generated(self, request: Request, additions: Additions, **changes: Any) -> Any:
        options: dict[str, Any] = {
            name: value
            for name, value in own_types(request.options).items()
            if name not in NOT_TOLD
        }
        if "stop_strings" in options:
            options["tokenizer"] = self._tokenizer
        eos_token_ids = self._eos_token_ids(request)
        options |= functions(
            additions,
            self._followers(request, additions),
            length=len(request.prompt),
            context=PluginContext(len(self._tokenizer), eos_token_ids, self._tokenizer),
        )
        prompt_ids = torch.tensor([list(request.prompt)])
        with _quiet(), torch.no_grad():
            return self.reference.model.generate(
                prompt_ids,
                attention_mask=torch.ones_like(prompt_ids),
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
                **{**options, **changes},
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of options that do not fit together, and goes on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
