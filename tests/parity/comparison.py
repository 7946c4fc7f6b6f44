"""One batch of configurations, in the service and in transformers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exactness.loop_thread import PATIENCE
from exactness.running import PLAIN, RunningTarget, outcome
from outrider_client import (
    Completion,
    GeneratedSequence,
    GenerationConfig,
    InvalidRequestError,
    StreamInterruptedError,
    TokenLogProb,
)
from parity.configurations import Configuration
from parity.drafter import Traitor
from parity.oracle import EndsAgainstItsForm, Expected, Law, Oracle
from parity.seeded import NothingToChoose

CONTRADICTION = "leave no token|infinite score|can continue the text|that it forbids"
HOPELESS = -1e7
"""Beam scores below are not sums of log-probabilities."""

Answer = Completion | InvalidRequestError | StreamInterruptedError


class Tally:
    """What was compared: a comparison of nothing shows nothing."""

    def __init__(self) -> None:
        self.modes: Counter[str] = Counter()
        self.by_transformers: Counter[str] = Counter()
        """Modes of those that transformers had an answer to."""
        self.num_refused = 0
        self.additions: Counter[str] = Counter()
        """Of requests that were answered."""
        self.num_drafted = 0
        self.accepted: Counter[str] = Counter()
        """Draft tokens, by who proposed them."""

    def count(self, configuration: Configuration, answer: Answer) -> None:
        """A configuration that was compared, and how it was drafted."""
        self.modes[configuration.mode] += 1
        self.by_transformers[configuration.mode] += configuration.compared
        if not isinstance(answer, Completion):
            self.num_refused += 1
            return
        for name, value in configuration.additions._asdict().items():
            self.additions[name] += bool(value)
        self.num_drafted += answer.speculation.num_draft_tokens
        for drafter in answer.speculation.drafters:
            self.accepted[drafter.method] += drafter.num_accepted_tokens


class Comparison:
    """A model in the service and in transformers.

    Args:
        running: The service.
        traitor: Its drafter.
        oracle: transformers.
        prompts: What texts begin with.
        num_batches: As many as there is time for.
    """

    def __init__(
        self,
        running: RunningTarget,
        traitor: Traitor,
        oracle: Oracle,
        prompts: Sequence[Sequence[int]],
        *,
        num_batches: int,
    ) -> None:
        self._running = running
        self._traitor = traitor
        self._oracle = oracle
        self.num_batches = num_batches
        self.vocab_size: int = oracle.reference.model.config.vocab_size
        self.texts = [oracle.text(prompt) for prompt in prompts]

    def compare(self, batch: Sequence[Configuration], tally: Tally) -> None:
        """Serve a batch, every configuration with a drafter and without, all at once."""
        expected = [self._expected(configuration) for configuration in batch]
        self._traitor.tell(
            [
                [*configuration.request.prompt, *sequence.token_ids]
                for configuration, sequences in zip(batch, expected, strict=True)
                for sequence in sequences or ()
            ]
        )
        plain = [configuration._replace(speculation=PLAIN) for configuration in batch]
        with ThreadPoolExecutor(2 * len(batch)) as threads:
            answers = list(threads.map(self._answer, [*batch, *plain]))
        for configuration, sequences, drafted, plainly in zip(
            batch, expected, answers[: len(batch)], answers[len(batch) :], strict=True
        ):
            tally.count(configuration, drafted)
            assert text_of(drafted) == text_of(plainly), configuration
            assert_drafted(drafted, configuration)
            assert_of_the_form(drafted, configuration)
            if sequences is not None:
                assert_as_expected(drafted, sequences, configuration)
        self._running.assert_nothing_left()

    def _expected(self, configuration: Configuration) -> list[Expected] | None:
        """transformers' answer; empty if its options contradict each other, None if it has none."""
        if not configuration.compared:
            return None
        try:
            return self._oracle.sequences(configuration.request, configuration.additions)
        except NothingToChoose:
            return []
        except EndsAgainstItsForm:
            return None
        except Exception as fault:  # goes on, with what was asked for
            fault.add_note(f"{configuration}")
            raise

    def _answer(self, configuration: Configuration) -> Answer:
        request = configuration.request
        try:
            return self._running.client.generate(
                list(request.prompt),
                GenerationConfig(**request.options),
                seed=request.seed,
                speculation=configuration.speculation,
                log_probs=configuration.num_top_log_probs,
                timeout=PATIENCE,
                **configuration.additions.arguments(),
            )
        except (InvalidRequestError, StreamInterruptedError) as refusal:
            return refusal


def text_of(answer: Answer) -> object:
    """What no drafter may change."""
    return outcome(answer) if isinstance(answer, Completion) else "refused"


def assert_drafted(answer: Answer, configuration: Configuration) -> None:
    """Where the drafter was waited for, it drafted."""
    if (
        isinstance(answer, Completion)
        and configuration.asks_the_drafter
        and len(answer.token_ids) > 2
    ):
        assert answer.speculation.num_draft_tokens > 0, configuration


def assert_of_the_form(answer: Answer, configuration: Configuration) -> None:
    """The text is one of the form's, or the beginning of one."""
    form = configuration.additions.form
    if form is None or not form.texts or not isinstance(answer, Completion):
        return
    for sequence in answer.sequences:
        ended = sequence.matched_stop_token_id is not None or sequence.matched_stop_string
        if not ended:  # the text of what ends it is no part of the form
            assert any(text.startswith(sequence.text) for text in form.texts), configuration


def assert_as_expected(
    answer: Answer, expected: Sequence[Expected], configuration: Configuration
) -> None:
    """Token for token, and where it was asked for, in every probability.

    Args:
        answer: The service's.
        expected: transformers'; empty: its options contradict each other.
        configuration: What was asked for.
    """
    if not expected:
        assert not isinstance(answer, Completion), configuration
        assert re.search(CONTRADICTION, answer.message), answer.message
        return
    assert isinstance(answer, Completion), (answer, configuration)
    assert len(answer.sequences) == len(expected)
    # Beams that were never possible are there to fill the number, with any text.
    possible = [each for each in expected if each.score is None or each.score > HOPELESS]
    found = answer.sequences[: len(possible)]
    token_ids = [each.token_ids for each in found]
    assert token_ids == [each.token_ids for each in possible], configuration
    for sequence, right in zip(found, possible, strict=True):
        if right.score is not None:
            assert sequence.score == pytest.approx(right.score, rel=1e-5, abs=1e-5)
            assert sequence.beam_indices == right.beam_indices
        elif right.law is not None and configuration.num_top_log_probs is not None:
            assert_same_chances(sequence, right.law, num_top=configuration.num_top_log_probs)


def assert_same_chances(sequence: GeneratedSequence, law: Law, *, num_top: int) -> None:
    """The law that each token was drawn from: of the token, and of the most probable ones."""
    raw, processed = (rows.double().softmax(-1) for rows in (law.logits, law.scores))
    # Its decay penalty can make no number of what another option made impossible.
    lawful = ~processed.isnan().any(-1)
    raw, processed = raw[lawful], processed[lawful]
    chosen = torch.tensor(sequence.token_ids)[lawful, None]
    told = [each for each, kept in zip(sequence.log_probs, lawful, strict=True) if kept]
    close([each.raw for each in told], raw.gather(1, chosen)[:, 0])
    close([each.processed for each in told], processed.gather(1, chosen)[:, 0])
    for row, each in enumerate(told):
        assert len(each.top_raw) == num_top
        # Tokens whose chance is too small for a number may be listed or not.
        assert len(each.top_processed) >= min(num_top, int((processed[row] > 0).sum()))
        for top, right in ((each.top_raw, raw[row]), (each.top_processed, processed[row])):
            assert_most_probable(top, right)


def assert_most_probable(top: Sequence[TokenLogProb], law: torch.Tensor) -> None:
    """These are the most probable tokens, with their probabilities."""
    close([each.log_prob for each in top], law[[each.token_id for each in top]])
    close([each.log_prob for each in top], law.topk(len(top)).values)


def close(log_probs: Sequence[float], chances: torch.Tensor) -> None:
    """The same probabilities, up to the rounding of float32."""
    told = torch.tensor(log_probs, dtype=torch.float64).exp()
    torch.testing.assert_close(told, chances, rtol=2e-5, atol=1e-7)
