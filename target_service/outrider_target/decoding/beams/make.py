"""Builds the strategy of a request that asks for beams."""

from __future__ import annotations

from outrider_target.constraints.constraint import Constraint
from outrider_target.decoding.beams.beam_form import BeamForm
from outrider_target.decoding.beams.constrained_search import ConstrainedBeamSearch
from outrider_target.decoding.beams.draws import HighestScores, SeededSample
from outrider_target.decoding.beams.ends import Ends
from outrider_target.decoding.beams.group_search import GroupBeamSearch
from outrider_target.decoding.beams.guesses import Guesser
from outrider_target.decoding.beams.rule import BeamRule
from outrider_target.decoding.beams.search import BeamSearch
from outrider_target.decoding.beams.settings import BeamSettings
from outrider_target.decoding.beams.strategy import BeamStrategy
from outrider_target.decoding.stopping import Criteria, StopStrings
from outrider_target.requests.request import DraftMethod, GenerationRequest


def beam_strategy(
    request: GenerationRequest,
    settings: BeamSettings,
    stop_strings: StopStrings | None,
    constraint: Constraint | None = None,
) -> BeamStrategy:
    """The strategy of a request's one sequence of beams."""
    criteria = None
    if request.plugins.criteria:
        criteria = Criteria(request.plugins.criteria, request.prompt)
    return BeamStrategy(
        settings,
        request.parameters,
        _rule(request, settings, Ends(request.parameters, criteria), formed=constraint is not None),
        request.prompt,
        stop_strings,
        request.plugins.processors,
        form=None if constraint is None else BeamForm(constraint),
        guesser=Guesser(request.prompt, request.parameters)
        if request.speculation.method is DraftMethod.PROMPT_LOOKUP
        else None,
    )


def _rule(
    request: GenerationRequest, settings: BeamSettings, ends: Ends, *, formed: bool
) -> BeamRule:
    num_prompt_tokens = len(request.prompt)
    if settings.num_groups > 1:
        return GroupBeamSearch(
            settings, request.parameters, ends, num_prompt_tokens=num_prompt_tokens
        )
    if settings.forced_phrases:
        return ConstrainedBeamSearch(settings, request.parameters, ends, request.prompt)
    draw = SeededSample(request.seed) if request.parameters.do_sample else HighestScores()
    return BeamSearch(
        settings,
        request.parameters,
        draw,
        ends,
        num_prompt_tokens=num_prompt_tokens,
        formed=formed,
    )
