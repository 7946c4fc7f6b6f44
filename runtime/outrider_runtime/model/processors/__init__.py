"""What a request does to the scores of its rows, in transformers' order.

    sequence_bias,                                                            history
    a group's penalties (diversity_penalty of group beam search),             diversity
    encoder_repetition_penalty, repetition_penalty,                           history
    no_repeat_ngram_size, encoder_no_repeat_ngram_size, bad_words_ids,        history
    min_length, min_new_tokens,                                               length
    a group's allowed tokens (prefix_allowed_tokens_fn),                      allowed
    forced_bos, forced_eos,                                                   length
    remove_invalid_values, exponential_decay_length_penalty,                  length
    suppress_tokens, begin_suppress_tokens,                                   length
    a group's own processors (logits_processor),                              plugged
    temperature, top_h, top_k, top_p, min_p, typical_p, epsilon, eta          warpers, if sampling
    watermarking_config                                                       watermarking
    renormalize_logits

All are pure functions of a row's group: its prefix, its prompt's length, the request's parameters
and, if only some tokens are allowed, which; so must a group's own processors be. Nothing is
remembered between rounds, so drafts can be verified, rejected and verified again.

Knows nothing of how a token is then chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outrider_runtime.model.arrays import Array, Arrays
from outrider_runtime.model.processors import allowed, diversity, history, length, plugged
from outrider_runtime.model.processors.edit import Edit
from outrider_runtime.model.row_group import PlacedGroup

_PROCESSORS: Sequence[Callable[[Sequence[PlacedGroup], int], Edit | None]] = (
    history.add_sequence_bias,
    diversity.subtract_penalties,
    history.reward_prompt_tokens,
    history.penalise_repetition,
    history.ban_repeated_ngrams,
    history.ban_prompt_ngrams,
    history.ban_bad_words,
    length.ban_early_end,
    allowed.keep_allowed,
    length.force_tokens,
    length.remove_invalid_values,
    length.favour_end,
    length.ban_suppressed,
    plugged.run_plugins,
)


def edits_of(placed: Sequence[PlacedGroup], vocab_size: int) -> list[Edit]:
    """All that precedes the warpers, in order: to be sent to where the scores live, then applied.

    Empty where no group asks for anything.
    """
    edited = [place for place in placed if place.group.edits_scores]
    if not edited:
        return []
    found = (processor(edited, vocab_size) for processor in _PROCESSORS)
    return [edit for edit in found if edit is not None]


def edit_scores(xp: Arrays, scores: Array, edits: Sequence[Edit]) -> Array:
    """Apply the edits.

    Args:
        xp: where the scores live, and the edits' arrays.
        scores: [rows, vocab]; never changed.
        edits: those of the batch's groups.

    Returns:
        The edited scores: a copy, or `scores` itself where there are no edits.
    """
    if edits:
        scores = xp.copy(scores)
        for edit in edits:
            edit.apply(xp, scores)
    return scores
