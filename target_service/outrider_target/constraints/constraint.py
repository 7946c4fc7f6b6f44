"""The port to what restricts a text: which tokens may follow, for one sequence.

A constraint walks committed tokens only: a draft is looked at from there, and nothing of it
remains. Owned by the engine thread. Knows nothing of models, drafters or how a form is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Allowed = npt.NDArray[np.bool_]
"""[..., vocab]: which tokens may come next."""


class Constraint(Protocol):
    """A form and how far a sequence has come in it."""

    def push(self, token_id: int) -> None:
        """Commit a token that is not an end-of-sequence token.

        Raises:
            InvalidRequest: The form forbids it; other options must have forced it.
        """

    @property
    def ended(self) -> bool:
        """Whether the text is complete, nothing can follow and no token says so.

        Raises:
            InvalidRequest: As `admissible`.
        """

    def admissible(self, draft: Sequence[int]) -> int:
        """How many tokens of a draft the form allows; the rest could never be accepted.

        Raises:
            InvalidRequest: The form cannot be followed any further.
        """

    def allowed(self, draft: Sequence[int]) -> Allowed:
        """What may follow the committed tokens, and each token of an admissible draft.

        Returns:
            [len(draft) + 1, vocab].

        Raises:
            InvalidRequest: As `admissible`.
        """

    def forced(self, limit: int) -> list[int]:
        """Up to `limit` tokens that must follow: each the only one behind those before it.

        Raises:
            InvalidRequest: As `admissible`.
        """

    def copy(self) -> Constraint:
        """One that has come as far, and goes its own way from here."""


class Form(Protocol):
    """A form that texts can have; each sequence follows it on its own."""

    def start(self, eos_token_ids: Sequence[int]) -> Constraint:
        """At the start of a text that one of these tokens ends, if there are any."""
