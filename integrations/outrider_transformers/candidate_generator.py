"""A candidate generator of transformers whose candidates come from our draft service."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_contract.generation_config import from_json_dict
from outrider_runtime.draft_tree import Limits
from transformers.generation.candidate_generator import CandidateGenerator

from outrider_transformers.remote_drafter import RemoteDraft, RemoteDrafter

_MAX_NODES = 256
_DEFAULT_WINDOW = 20
"""Of transformers' assisted generation, where the configuration says nothing."""

_HEURISTICS = frozenset({"heuristic", "heuristic_transient"})


class RemoteCandidateGenerator(CandidateGenerator):  # type: ignore[misc]  # transformers is untyped
    """Drafts one sequence remotely; for one generation.

    Candidates come without scores, so that transformers compares them with the tokens it chooses
    itself: whatever the service proposes, output follows the model alone.
    """

    def __init__(self, drafter: RemoteDrafter, config: transformers.GenerationConfig) -> None:
        """Begin.

        Args:
            drafter: Where candidates come from.
            config: The generation's, as `generate` has prepared it: `max_length` is set.
        """
        self.num_candidates = 0
        """Tokens proposed so far."""
        self.num_accepted = 0
        """How many of them the model chose as well."""
        self._drafter = drafter
        self._config = config
        self._window: int = config.num_assistant_tokens or _DEFAULT_WINDOW
        self._draft: RemoteDraft | None = None

    def get_candidates(self, input_ids: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """The sequence with the drafted tokens behind it.

        Args:
            input_ids: `[1, length]`, all tokens so far.
            kwargs: Nothing that is looked at.

        Returns:
            `[1, length + candidates]`, and no scores.

        Raises:
            DrafterRefused: The draft service does not fit the model.
            ValueError: There is more than one sequence.
        """
        if input_ids.shape[0] != 1:
            raise ValueError("drafts are for one sequence; input_ids has several")
        # The model always chooses one token more than it is given.
        window = min(self._window, self._config.max_length - input_ids.shape[1] - 1)
        if window <= 0:
            return input_ids, None
        tokens: list[int] = input_ids[0].tolist()
        limits = Limits(
            window, window, _MAX_NODES, self._config.assistant_confidence_threshold or 0
        )
        if self._draft is None:
            self._draft = self._drafter.open(tokens, drafting_config(self._config), limits)
        candidates = self._draft.propose(tokens, limits, self._drafter.timeout)
        self.num_candidates += len(candidates)
        drafted = torch.tensor([candidates], dtype=input_ids.dtype, device=input_ids.device)
        return torch.cat([input_ids, drafted], dim=1), None

    def update_candidate_strategy(
        self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int
    ) -> None:
        """Move the window as transformers' own generator does, by `num_assistant_tokens_schedule`.

        Args:
            input_ids: `[1, length]`; not looked at.
            scores: `[1, candidates + 1, vocabulary]`.
            num_matches: Candidates that the model chose as well.
        """
        self.num_accepted += int(num_matches)
        if self._config.num_assistant_tokens_schedule not in _HEURISTICS:
            return
        all_matched = num_matches == scores.shape[1] - 1
        self._window = self._window + 2 if all_matched else max(1, self._window - 1)

    def close(self) -> None:
        """Let the draft service forget the sequence."""
        if self._draft is not None:
            self._draft.close()


def drafting_config(config: transformers.GenerationConfig) -> GenerationConfig:
    """What the drafter should know of a configuration.

    It drafts greedily even where the model samples: that noise is not shared, so that a token is
    most likely to be met by the most probable one.
    """
    message = from_json_dict(config.to_dict(), ignore_unknown=True)
    message.do_sample = False
    return message
