"""Which phrases constrained beam search can force (`force_words_ids`), as in transformers 4.56.

A value is refused with the name of its field.
"""

from __future__ import annotations

from itertools import pairwise

from outrider.v1.generation_config_pb2 import ForcedPhrases, GenerationConfig
from outrider_contract.generation_config import is_set
from outrider_runtime.errors import InvalidRequest

MAX_FORCED_TOKENS = 1024
"""Of all phrases together: each step looks at the next token of every one, for every beam."""
_FIELD = "generation_config.force_words_ids"


def forced_phrases(
    config: GenerationConfig, vocab_size: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The phrases of a merged configuration, each with its forms; empty when it has none.

    Raises:
        InvalidRequest: A phrase is wrong, or the mode cannot force it.
    """
    if not is_set(config, "force_words_ids"):
        return ()
    if config.num_beams < 2:
        raise InvalidRequest(_FIELD, "phrases are forced by beams; set num_beams above 1")
    if config.do_sample:
        raise InvalidRequest(_FIELD, "phrases are forced by a search; set do_sample=false")
    if config.num_beam_groups > 1:
        raise InvalidRequest(_FIELD, "cannot be combined with num_beam_groups above 1")
    phrases = tuple(map(_forms, config.force_words_ids.phrases))
    if not phrases:
        raise InvalidRequest(_FIELD, "must not be empty")
    token_ids = [token_id for forms in phrases for form in forms for token_id in form]
    if len(token_ids) > MAX_FORCED_TOKENS:
        raise InvalidRequest(
            _FIELD,
            f"at most {MAX_FORCED_TOKENS} tokens in all are possible, got {len(token_ids)}",
        )
    if max(token_ids) >= vocab_size:
        raise InvalidRequest(
            _FIELD, f"token id {max(token_ids)} is outside the vocabulary of {vocab_size}"
        )
    for forms in phrases:
        _check_apart(forms)
    return phrases


def _forms(phrase: ForcedPhrases) -> tuple[tuple[int, ...], ...]:
    forms = tuple(tuple(alternative.ids) for alternative in phrase.alternatives)
    if not forms or not all(forms):
        raise InvalidRequest(_FIELD, "must not hold an empty phrase")
    return forms


def _check_apart(forms: tuple[tuple[int, ...], ...]) -> None:
    """No form may begin another: it would be met before it."""
    ordered = sorted(forms)
    for form, following in pairwise(ordered):
        if following[: len(form)] == form:
            raise InvalidRequest(
                _FIELD, f"{list(form)} begins another alternative of its phrase: {list(following)}"
            )
