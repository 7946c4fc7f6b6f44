"""When a beam's text ends: the stopping rules, asked about continuations that may never be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.beams.beam import Beam, Choice
from outrider_target.decoding.stopping import Criteria
from outrider_target.requests.request import Finish, FinishReason


class Ends:
    """The stopping rules of a request."""

    def __init__(self, parameters: SamplingParameters, criteria: Criteria | None) -> None:
        self._criteria = criteria
        self._eos_token_ids = frozenset(parameters.eos_token_ids)
        self._max_length = parameters.max_length

    def choice(self, beams: Sequence[Beam], parent: int, token_id: int, score: float) -> Choice:
        """A continuation of a beam, and whether it ends the text.

        When several rules apply, `stop` is reported before `length`, as for other modes.
        """
        beam = beams[parent]
        stop_strings = matched = None
        if beam.stop_strings is not None:
            stop_strings = beam.stop_strings.copy()
            matched = stop_strings.push(token_id)
        finish = form = None
        if beam.form is not None and score > -math.inf and token_id not in self._eos_token_ids:
            form = beam.form.after(token_id)
        if matched is not None:
            finish = Finish(FinishReason.STOP, stop_string=matched)
        elif token_id in self._eos_token_ids:
            finish = Finish(FinishReason.STOP, stop_token_id=token_id)
        elif form is not None and form.ended:
            finish = Finish(FinishReason.STOP)
        elif self._criteria is not None and (
            met := self._criteria.met_by([*beam.branch.token_ids, token_id])
        ):
            finish = Finish(FinishReason.STOP, criterion=met)
        elif len(beam.branch.token_ids) + 1 >= self._max_length:
            finish = Finish(FinishReason.LENGTH)
        return Choice(parent, token_id, score, finish, stop_strings, form)
