"""When a sequence ends, decided token by token, so that it is exact inside an accepted run.

transformers' assisted generation looks once a round and overshoots there. As in transformers'
plain one, the stop string and the rest of the token that completed it stay in the output. This is
also where a constraint on the text learns what was committed. Knows nothing of drafting.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from outrider_runtime.errors import PluginFailed
from outrider_runtime.sampling_parameters import SamplingParameters
from outrider_runtime.tokenizer import StreamDecoder, backend
from transformers import PreTrainedTokenizerFast

from outrider_target.constraints.constraint import Constraint
from outrider_target.requests.request import Finish, FinishReason, NamedCriterion


class StopStrings:
    """Finds stop strings in the text of a growing sequence.

    A stop string may begin in the prompt, as in transformers, but must end in a generated token.
    """

    def __init__(
        self,
        stop_strings: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        prompt: Sequence[int],
    ) -> None:
        self._stop_strings = tuple(stop_strings)
        self._longest = max(map(len, stop_strings))
        # A token is at least one byte, so this many prompt tokens hold all text that can matter.
        reach = 4 * self._longest
        self._decoder = StreamDecoder(backend(tokenizer), skip_special_tokens=False)
        self._tail = self._decoder.push(prompt[-reach:])[-self._longest :]

    def copy(self) -> StopStrings:
        """Another that has seen the same text and goes on by itself."""
        other = copy.copy(self)
        other._decoder = self._decoder.copy()
        return other

    def push(self, token_id: int) -> str | None:
        """Take one more token; return the stop string that it completes, if any."""
        piece = self._decoder.push([token_id])
        text = self._tail + piece
        old = len(self._tail)
        self._tail = text[-self._longest :]
        for stop_string in self._stop_strings:
            if text.find(stop_string, max(0, old - len(stop_string) + 1)) >= 0:
                return stop_string
        return None


class Criteria:
    """Asks a request's own stopping criteria about a growing sequence."""

    def __init__(self, criteria: Sequence[NamedCriterion], prompt: Sequence[int]) -> None:
        self._criteria = criteria
        self._token_ids = list(prompt)
        self._num_prompt_tokens = len(prompt)

    def push(self, token_id: int) -> str | None:
        """Take one more token; return the name of the first criterion that it meets, if any.

        Raises:
            PluginFailed: A criterion raised.
        """
        self._token_ids.append(token_id)
        return self.met_by(self._token_ids)

    def met_by(self, token_ids: Sequence[int]) -> str | None:
        """The name of the first criterion that a whole text meets, if any.

        Raises:
            PluginFailed: A criterion raised.
        """
        for criterion in self._criteria:
            try:
                if bool(criterion.run(token_ids, self._num_prompt_tokens)):
                    return criterion.name
            except Exception as fault:  # a plug-in may raise anything
                raise PluginFailed(criterion.name) from fault
        return None


class StopCheck:
    """The stopping rules of one sequence."""

    def __init__(
        self,
        parameters: SamplingParameters,
        stop_strings: StopStrings | None,
        constraint: Constraint | None = None,
        criteria: Criteria | None = None,
        *,
        heed_eos: bool = True,
    ) -> None:
        self._eos_token_ids = frozenset(parameters.eos_token_ids if heed_eos else ())
        self._max_length = parameters.max_length
        self._stop_strings = stop_strings
        self._constraint = constraint
        self._criteria = criteria

    def push(self, token_id: int, length: int) -> Finish | None:
        """Judge a token that makes the sequence `length` tokens long, prompt included.

        When several rules apply to one token, `stop` is reported before `length`: the text ended by
        itself.

        Raises:
            InvalidRequest: The constraint cannot be followed any further.
            PluginFailed: A criterion of the request's own raised.
        """
        matched = self._stop_strings.push(token_id) if self._stop_strings else None
        if matched is not None:
            return Finish(FinishReason.STOP, stop_string=matched)
        if token_id in self._eos_token_ids:
            return Finish(FinishReason.STOP, stop_token_id=token_id)
        if self._constraint is not None:
            self._constraint.push(token_id)
            if self._constraint.ended:
                return Finish(FinishReason.STOP)
        if self._criteria is not None and (met := self._criteria.push(token_id)) is not None:
            return Finish(FinishReason.STOP, criterion=met)
        if length >= self._max_length:
            return Finish(FinishReason.LENGTH)
        return None
