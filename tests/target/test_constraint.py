"""Texts with a form under every kind of drafter: it holds, the text stays, nothing is left."""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np
import pytest
from outrider_runtime.errors import InvalidRequest
from outrider_target.constraints.constraint import Constraint
from outrider_target.constraints.grammar import GrammarCompiler
from outrider_target.constraints.token_trie import TokenTrie
from outrider_target.requests.request import DraftMethod
from target.batch import SPECULATION, Answer, Batch, request
from target.conftest import NewRunner
from target.drafters import ScriptedDrafter, repeating, sometimes_right
from target.letters import EOS, VOCAB_SIZE, compiled, ids_of, letters_compiler, text_of


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return letters_compiler()


def trie(*texts: str) -> TokenTrie:
    return TokenTrie(
        map(ids_of, texts), field="structured_output.token_choices", vocab_size=VOCAB_SIZE
    )


def state_of(constraint: Constraint) -> list[int]:
    return np.flatnonzero(constraint.allowed([])[0]).tolist()


def test_a_draft_is_cut_before_the_first_token_that_cannot_follow(
    compiler: GrammarCompiler,
) -> None:
    constraint = compiled(compiler, "ab[cd]e").start([EOS])
    constraint.push(ids_of("a")[0])
    before = state_of(constraint)
    assert constraint.admissible(ids_of("bcx")) == 2
    assert constraint.admissible(ids_of("x")) == 0
    assert constraint.admissible([EOS]) == 0
    assert constraint.admissible([VOCAB_SIZE + 3]) == 0
    assert constraint.admissible([*ids_of("bde"), EOS, EOS, 5]) == 4
    masks = constraint.allowed(ids_of("bde"))
    assert [np.flatnonzero(row).tolist() for row in masks] == [
        ids_of("b"),
        ids_of("cd"),
        ids_of("e"),
        [EOS],
    ]
    assert state_of(constraint) == before == ids_of("b")


def test_a_trie_cuts_a_draft_before_the_first_token_that_cannot_follow() -> None:
    constraint = trie("ab", "abcd", "abce", "x").start([EOS])
    constraint.push(ids_of("a")[0])
    assert constraint.admissible(ids_of("bdx")) == 1
    assert constraint.admissible(ids_of("x")) == 0
    assert constraint.admissible([EOS]) == 0
    assert constraint.admissible([VOCAB_SIZE + 3]) == 0
    assert constraint.admissible([*ids_of("b"), EOS, EOS]) == 2
    assert constraint.admissible([*ids_of("bcd"), EOS, EOS, 5]) == 4
    masks = constraint.allowed(ids_of("bcd"))
    assert [np.flatnonzero(row).tolist() for row in masks] == [
        ids_of("b"),
        [EOS, *ids_of("c")],
        ids_of("de"),
        [EOS],
    ]
    with pytest.raises(InvalidRequest, match="token_choices"):
        constraint.push(ids_of("x")[0])
    endless = trie("ab", "abcd").start([])
    assert endless.admissible(ids_of("abcdd")) == 4
    for letter in "abcd":
        assert not endless.ended
        endless.push(ids_of(letter)[0])
    assert endless.ended


@pytest.mark.parametrize("eos", [(EOS,), ()], ids=["eos", "no eos"])
def test_what_leaves_no_choice_is_forced_to_the_end_and_no_further(
    compiler: GrammarCompiler, eos: tuple[int, ...]
) -> None:
    end = list(eos)
    for form in (compiled(compiler, "abc(d|ef)g"), trie("abcdg", "abcefg")):
        constraint = form.start(eos)
        assert constraint.forced(0) == []
        assert constraint.forced(2) == ids_of("ab")
        assert constraint.forced(9) == ids_of("abc")
        assert constraint.admissible(ids_of("abce")) == 4
        for token_id in ids_of("abc"):
            constraint.push(token_id)
        assert constraint.forced(9) == []
        constraint.push(*ids_of("e"))
        assert constraint.forced(9) == [*ids_of("fg"), *end]
        assert constraint.forced(2) == ids_of("fg")
        for token_id in ids_of("fg"):
            constraint.push(token_id)
        assert constraint.forced(9) == end
        assert constraint.ended == (not eos)
    optional = trie("ab", "abcd").start(eos)
    assert optional.forced(9) == ids_of("ab" if eos else "abcd")


def test_a_list_may_hold_the_end_token_itself() -> None:
    constraint = TokenTrie([[5, EOS], [5, 6, EOS]], field="f", vocab_size=VOCAB_SIZE).start([EOS])
    assert constraint.admissible([5, EOS, 5]) == 2
    masks = constraint.allowed([5])
    assert [np.flatnonzero(row).tolist() for row in masks] == [[5], [EOS, 6]]


def test_without_an_end_token_the_text_ends_where_nothing_can_follow(
    compiler: GrammarCompiler,
) -> None:
    constraint = compiled(compiler, "ab?").start([])
    assert constraint.admissible(ids_of("ab")) == 2
    assert constraint.admissible(ids_of("abb")) == 2
    constraint.push(ids_of("a")[0])
    assert not constraint.ended
    constraint.push(ids_of("b")[0])
    assert constraint.ended


@pytest.mark.parametrize("eos", [(EOS,), ()], ids=["eos", "no eos"])
@pytest.mark.parametrize("blocks", [256, 14], ids=["roomy", "preempting"])
def test_no_drafter_changes_a_text_or_breaks_its_form(
    compiler: GrammarCompiler, new_runner: NewRunner, eos: tuple[int, ...], blocks: int
) -> None:
    regexes = [
        "[a-d]{3,9}z",
        "(ab|cd){2,5}",
        "x",
        "[a-z]{26}",
        "(a|b(c|d)*e){4}f",
        None,
    ]
    forms = [None if regex is None else compiled(compiler, regex) for regex in regexes]
    forms += [trie("ab", "abcd", "abce", "xyzxyzxyzxyzxyz"), trie("q" * 25)]
    regexes += ["ab(cd|ce)?|(xyz){5}", "q{25}"]
    chance = random.Random(1)
    requests = [
        request(
            [chance.randrange(3, VOCAB_SIZE) for _ in range(6)],
            new_tokens=30,
            seed=index,
            num_sequences=1 + index % 2,
            do_sample=index % 2 == 1,
            eos_token_ids=eos,
        )
        for index in range(len(regexes))
    ]

    def served(drafter: ScriptedDrafter | None, *, forced: bool = True) -> list[Answer]:
        batch = Batch(new_runner(num_blocks=blocks))
        if drafter is not None:
            batch.drafter = drafter
            batch.__post_init__()
        speculation = dataclasses.replace(SPECULATION, forced=forced)
        states = [
            batch.submit(dataclasses.replace(one, speculation=speculation), form)
            for one, form in zip(requests, forms, strict=True)
        ]
        batch.finish()
        return [batch.answers[state] for state in states]

    plain = served(None, forced=False)
    for regex, answer in zip(regexes, plain, strict=True):
        assert answer.error is None
        for token_ids, finish in zip(answer.token_ids, answer.finishes, strict=True):
            assert finish is not None
            if regex is not None and finish.reason.value == "stop":
                assert re.fullmatch(regex, text_of(token_ids))
    truth = {
        (one.id, index): [*one.prompt, *token_ids, *ids_of("zzzzzzzz")]
        for one, answer in zip(requests, plain, strict=True)
        for index, token_ids in enumerate(answer.token_ids)
    }
    num_preemptions = num_accepted = num_forced = 0
    for probability, forced in ((1.0, False), (0.5, True), (None, True)):
        drafter = None
        if probability is not None:
            drafter = sometimes_right(truth, probability=probability, vocab_size=VOCAB_SIZE, seed=2)
        drafted = served(drafter, forced=forced)
        assert [answer.token_ids for answer in drafted] == [answer.token_ids for answer in plain]
        assert [answer.finishes for answer in drafted] == [answer.finishes for answer in plain]
        num_preemptions += sum(answer.num_preemptions for answer in drafted)
        for answer in drafted:
            assert answer.counters is not None
            num_accepted += answer.counters.num_accepted_tokens
            share = answer.counters.by_method.get(DraftMethod.GRAMMAR)
            if share is not None:
                assert forced
                assert share.num_accepted_tokens == share.num_draft_tokens
                num_forced += share.num_accepted_tokens
    assert num_accepted > 0
    assert num_forced > 50
    assert (num_preemptions > 0) == (blocks < 100)
    useless = served(repeating(EOS), forced=False)
    assert [answer.token_ids for answer in useless] == [answer.token_ids for answer in plain]


@pytest.mark.parametrize("drafted", [True, False])
def test_what_is_forced_moves_the_window_only_where_nobody_else_drafts(
    new_runner: NewRunner, drafted: bool
) -> None:
    batch = Batch(new_runner())
    if drafted:
        batch.drafter = ScriptedDrafter(lambda request, index, token_ids, window: [])
        batch.__post_init__()
    speculation = dataclasses.replace(SPECULATION, schedule="heuristic", window=3)
    one = request([5, 6, 7], new_tokens=40, speculation=speculation)
    state = batch.submit(one, trie("abcdefghijklmnopqrstuvwxyz"))
    batch.finish()
    counters = batch.answers[state].counters
    assert counters is not None
    assert counters.by_method[DraftMethod.GRAMMAR].num_accepted_tokens > 10
    assert (state.sequences[0].window.size == 3) == drafted
