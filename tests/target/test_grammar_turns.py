"""Forms that take for ever to compile hold up nobody for long, and only other forms at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from outrider_runtime.errors import InvalidRequest, Overloaded
from outrider_target.constraints import grammar
from outrider_target.constraints.grammar import GrammarCompiler
from outrider_target.requests.request import Structure, TextForm
from target.letters import letters_compiler

ENDLESS = Structure("structured_output.regex", TextForm.REGEX, "a*")
SHORT = Structure("structured_output.regex", TextForm.REGEX, "ab")
PATIENCE = 20.0


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until this is set the endless form compiles, which the compiler soon loses patience with."""
    compile_one = GrammarCompiler._compile
    event = threading.Event()

    def stand_still(self: GrammarCompiler, structure: Structure, vocabulary: Any) -> Any:
        assert threading.current_thread().name.startswith("grammar"), "prompts need the others"
        if structure is ENDLESS:
            assert event.wait(PATIENCE)
        return compile_one(self, structure, vocabulary)

    monkeypatch.setattr(GrammarCompiler, "_compile", stand_still)
    monkeypatch.setattr(grammar, "_MAX_SECONDS", 0.1)
    yield event
    event.set()


async def test_forms_that_never_end_turn_others_away_with_a_delay_until_they_do(
    release: threading.Event,
) -> None:
    compiler = letters_compiler()
    async with asyncio.timeout(PATIENCE):
        ends = await asyncio.gather(
            *(compiler.compile(ENDLESS) for _ in range(grammar._MAX_AT_ONCE)),
            return_exceptions=True,
        )
        assert [type(end) for end in ends] == [InvalidRequest] * grammar._MAX_AT_ONCE
        with pytest.raises(Overloaded, match="retry later") as turned_away:
            await compiler.compile(SHORT)
        assert turned_away.value.retry_after == grammar._MAX_SECONDS
        release.set()
        while True:  # the threads need a moment to see it
            try:
                await compiler.compile(SHORT)
                break
            except Overloaded:
                continue
