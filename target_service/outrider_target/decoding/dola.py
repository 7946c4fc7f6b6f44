"""DoLa as a strategy: tokens are chosen where the model's layers disagree.

Each row's scores are a function of its prefix alone, so drafts are verified as ever; drafters need
not know of it. Knows nothing of gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from outrider_runtime.model.layer_contrast import contrast_layers
from outrider_runtime.model.layer_reading import LayerReading
from outrider_runtime.model.row_group import RowGroup
from outrider_runtime.model.scores import processed_scores
from outrider_runtime.sampling_parameters import SamplingParameters

from outrider_target.decoding.committed import Committed
from outrider_target.decoding.own_tokens import OwnTokens, TokenRows, select_own_tokens
from outrider_target.decoding.strategy import Selector
from outrider_target.decoding.token_strategy import TokenOptions, TokenStrategy
from outrider_target.drafting.drafter import Draft


class DolaStrategy(TokenStrategy):
    """Greedy decoding or sampling from contrasted layers.

    Args:
        parameters: As for `TokenStrategy`.
        committed: Likewise.
        layers: The layers to contrast the last one with.
        options: As for `TokenStrategy`.
    """

    verifies_others = False
    """Layers are read for the rows of one path."""

    def __init__(
        self,
        parameters: SamplingParameters,
        committed: Committed,
        layers: Sequence[int],
        options: TokenOptions,
    ) -> None:
        super().__init__(parameters, committed, options)
        self._layers = layers

    @property
    def selector(self) -> Selector:
        """All contrasted rows of a batch are decided in one call."""
        return select_contrasted_tokens

    def rows(self, draft: Draft) -> TokenRows:
        """The same rows, each read at the layers to contrast with."""
        rows = super().rows(draft)
        reading = LayerReading(rows.group.num_rows, logits_of=self._layers)
        return rows._replace(branches=[rows.branches[0]._replace(reading=reading)])


def select_contrasted_tokens(logits: torch.Tensor, wanted: Sequence[TokenRows]) -> list[OwnTokens]:
    """The target's own token for each row, by contrasted scores."""
    parts: list[torch.Tensor] = []
    first = 0
    for rows in wanted:
        span = slice(first, first + rows.group.num_rows)
        first = span.stop
        reading = rows.branches[0].reading
        assert reading is not None
        premature = [reading.logits[layer] for layer in reading.logits_of]
        contrasted = contrast_layers(logits[span], premature)
        if rows.group.edits_scores:
            contrasted = _where_possible(contrasted, logits[span], rows.group)
        parts.append(contrasted)
    return select_own_tokens(torch.cat(parts), wanted, model_logits=logits)


def _where_possible(
    contrasted: torch.Tensor, logits: torch.Tensor, group: RowGroup
) -> torch.Tensor:
    """The contrasted scores, but the model's own for rows where they leave nothing to choose.

    The contrast drops improbable tokens; the request's other options, or the form of its text, may
    forbid all the others. transformers then takes token 0.
    """
    possible = (processed_scores(contrasted, [group]) > -math.inf).any(-1, keepdim=True)
    return torch.where(possible, contrasted, logits)
