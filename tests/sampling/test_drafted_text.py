"""A text in two parts reads like the list of both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outrider_runtime.model.drafted_text import DraftedText

TOKENS = st.lists(st.integers(0, 9), max_size=6)
INDEX = st.none() | st.integers(-15, 15)


@given(TOKENS, TOKENS, INDEX, INDEX, st.sampled_from([None, 1, 2, -1]))
def test_it_reads_like_a_list(
    committed: list[int], draft: list[int], start: int | None, stop: int | None, step: int | None
) -> None:
    text, whole = DraftedText(committed, draft), committed + draft
    assert len(text) == len(whole)
    assert list(text) == whole
    assert text[start:stop:step] == whole[start:stop:step]
    assert [text[i] for i in range(-len(whole), len(whole))] == whole + whole
    array = np.asarray(text, dtype=np.int64)
    assert array.dtype == np.int64
    assert array.tolist() == whole
    with pytest.raises(IndexError):
        text[len(whole)]


def test_what_is_committed_is_not_copied() -> None:
    committed = [1, 2, 3]
    text = DraftedText(committed, (4,))
    committed[0] = 9
    assert text[0] == 9
