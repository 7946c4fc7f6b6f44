"""How far a beam has come in the form that its text must have. Each beam goes its own way."""

from __future__ import annotations

from outrider_runtime.errors import InvalidRequest

from outrider_target.constraints.constraint import Allowed, Constraint


class BeamForm:
    """A place in a form, which stays what it is: what follows a token is another one."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint

    def after(self, token_id: int) -> BeamForm:
        """The place behind one more token, which does not end the text.

        Raises:
            InvalidRequest: The form forbids it; other options must have forced it.
        """
        constraint = self._constraint.copy()
        constraint.push(token_id)
        return BeamForm(constraint)

    @property
    def ended(self) -> bool:
        """Whether the text is complete, nothing can follow and no token says so."""
        try:
            return self._constraint.ended
        except InvalidRequest:
            return False

    def allowed(self) -> Allowed | None:
        """What may follow, [1, vocab]; None at a dead end, which ends this beam, not the search."""
        try:
            return self._constraint.allowed(())
        except InvalidRequest:
            return None
