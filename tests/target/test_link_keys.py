"""The key of draft links is replaced in its file: open ones stay, the next one uses the new key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from draft.harness import FINGERPRINT, ScriptedProposer, counting, draft_service
from outrider.v1 import draft_pb2
from outrider_draft.proposer import Description
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.errors import StartupError
from outrider_runtime.loop_calls import LoopCalls
from outrider_runtime.server import ServerSettings
from outrider_target.drafting.remote import link as link_module
from outrider_target.drafting.remote.link import DraftLink, LinkStatus
from outrider_target.drafting.remote.link_key import LinkKey

OLD, NEW, WRONG = "the-old-key-of-targets", "the-new-key-of-targets", "a-key-of-nobody-at-all"
PATIENCE = 30


# --- what a file may hold


def test_without_a_key_nothing_is_said() -> None:
    assert LinkKey().metadata() is None


def test_the_key_of_the_flag_or_of_the_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{OLD}\n")
    expected = (("authorization", f"Bearer {OLD}"),)
    assert LinkKey(OLD).metadata() == LinkKey(None, file).metadata() == expected
    with pytest.raises(StartupError, match="not both"):
        LinkKey(OLD, file)


@pytest.mark.parametrize("text", ["", "\n", "two\nlines", "kéy", "a\tb"])
def test_what_cannot_be_a_key_is_one_clear_line_without_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(StartupError, match="is not one key") as refused:
        LinkKey(None, file)
    assert not text.strip() or text.strip() not in str(refused.value)
    with pytest.raises(StartupError, match="cannot read"):
        LinkKey(None, tmp_path / "absent")


def test_a_file_that_makes_no_sense_any_more_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(OLD)
    key = LinkKey(None, file)
    for broken in ("", "two\nlines"):
        file.write_text(broken)
        assert key.metadata() == LinkKey(OLD).metadata()
    file.unlink()
    assert key.metadata() == LinkKey(OLD).metadata()
    file.write_text(NEW)
    assert key.metadata() == LinkKey(NEW).metadata()


# --- a link, and a real draft service that asks for keys


class Files:
    """The keys that the drafter accepts, and the one that the target has."""

    def __init__(self, folder: Path) -> None:
        self._accepted, self.own = folder / "targets", folder / "target"
        self.accept(OLD)
        self.own.write_text(OLD)

    def accept(self, *keys: str) -> None:
        self._accepted.write_text("".join(f"targets {key}\n" for key in keys))

    def server(self, port: int = 0) -> ServerSettings:
        return ServerSettings(port=port, api_keys_file=self._accepted)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def proposer() -> ScriptedProposer:
    description = Description("prompt-lookup", "", 1000, FINGERPRINT)
    return ScriptedProposer(counting, description=description)


@asynccontextmanager
async def linked(address: str, files: Files) -> AsyncIterator[DraftLink]:
    hello = draft_pb2.Hello(
        protocol_version=PROTOCOL_VERSION, tokenizer_fingerprint=FINGERPRINT, vocab_size=1000
    )
    calls = LoopCalls(asyncio.get_running_loop())
    link = DraftLink(address, hello, calls, key=LinkKey(None, files.own))
    link.start(0, lambda event: None)
    try:
        yield link
    finally:
        await link.stop()
        calls.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.01)


async def becomes(link: DraftLink, status: LinkStatus) -> None:
    await until(lambda: link.status is status)


async def test_the_key_changes_over_under_an_open_link(files: Files) -> None:
    async with (
        draft_service(proposer(), server=files.server()) as drafter,
        linked(drafter.address, files) as link,
    ):
        await becomes(link, LinkStatus.READY)
        files.accept(OLD, NEW)
        files.own.write_text(NEW)
        await asyncio.sleep(1.1)  # the drafter looks once a second
        files.accept(NEW)
        await asyncio.sleep(1.1)
        async with linked(drafter.address, files) as other:
            await becomes(other, LinkStatus.READY)  # by the new key, there is no other
        files.own.write_text(OLD)
        async with linked(drafter.address, files) as other:
            await becomes(other, LinkStatus.REFUSED)
        files.own.write_text(NEW)
        assert link.status is LinkStatus.READY, "who was let in stays"
        assert link.num_losses == 0
        # The one that was open comes back with the new key as well.
        port = drafter.port
        await drafter.service.kill()
        await until(lambda: link.num_losses == 1)
        async with draft_service(proposer(), server=files.server(port)):
            await becomes(link, LinkStatus.READY)


async def test_a_link_whose_key_is_refused_comes_back_with_the_next_one(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_LOOK_SECONDS", 0.05)
    files.own.write_text(WRONG)
    async with (
        draft_service(proposer(), server=files.server()) as drafter,
        linked(drafter.address, files) as link,
    ):
        await becomes(link, LinkStatus.REFUSED)
        assert WRONG not in link.reason
        files.own.write_text(OLD)
        began = time.monotonic()
        await becomes(link, LinkStatus.READY)
        assert time.monotonic() - began < link_module._QUARANTINE / 2
