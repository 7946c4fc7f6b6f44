"""Whether a target and this drafter can work together. Pure."""

from __future__ import annotations

from outrider_contract.errors import Reason
from outrider_runtime.draft_protocol import (
    MAX_PROTOCOL_VERSION,
    MIN_PROTOCOL_VERSION,
    is_supported,
)
from outrider_runtime.errors import InvalidRequest, PreconditionFailed

from outrider_draft.proposer import Description

TRANSLATED = "translated"
"""Kind of a drafter on a link over which it speaks another tokenizer's ids."""


def agree(
    drafter: Description, *, protocol_version: int, tokenizer_fingerprint: str, vocab_size: int
) -> Description:
    """Compare what a target says in its hello with what the drafter is.

    Vocabulary sizes may differ: models of one family pad their embeddings differently.

    Returns:
        What the drafter is to that target.

    Raises:
        PreconditionFailed: Version or tokenizer do not fit.
        InvalidRequest: The hello makes no sense.
    """
    if not is_supported(protocol_version):
        raise PreconditionFailed(
            f"the target speaks version {protocol_version} of the draft protocol, this drafter "
            f"{MIN_PROTOCOL_VERSION} to {MAX_PROTOCOL_VERSION}; update the older of the two",
            reason=Reason.PROTOCOL_MISMATCH,
        )
    if vocab_size < 1:
        raise InvalidRequest("hello.vocab_size", "must be at least 1")
    own = drafter.tokenizer_fingerprint
    works_on_ids_alone = drafter.vocab_size == 0
    if works_on_ids_alone or (own and tokenizer_fingerprint == own):
        return drafter
    if tokenizer_fingerprint in drafter.translates:
        # On this link it speaks the target's ids: any of them.
        return drafter._replace(
            kind=TRANSLATED, tokenizer_fingerprint=tokenizer_fingerprint, vocab_size=0
        )
    known = f" or one of the {len(drafter.translates)} it translates" if drafter.translates else ""
    raise PreconditionFailed(
        f"the target's tokenizer ({_short(tokenizer_fingerprint)}) is not that of the draft model "
        f"({_short(own)}){known}; start the drafter with --target-tokenizer, or with a model of "
        f"the same family as the target's; its model is {drafter.model_id}",
        reason=Reason.TOKENIZER_MISMATCH,
    )


def _short(tokenizer_fingerprint: str) -> str:
    """Enough of a fingerprint to tell it from others."""
    return tokenizer_fingerprint[:12] or "none"
