"""The draft link end to end: a scripted target and a real service over loopback gRPC."""

from __future__ import annotations

from draft.harness import ScriptedProposer, counting, draft_service, target


async def test_a_window_of_tokens_comes_back_in_one_message() -> None:
    async with draft_service(ScriptedProposer(counting)) as drafter, target(drafter) as scripted:
        session = await scripted.open(7, [1, 2, 3], window=4)
        assert await scripted.grown(7) == [4, 5, 6, 7]
        assert len(session.grows) == 1
