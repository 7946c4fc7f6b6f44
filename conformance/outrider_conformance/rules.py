"""The rules of the draft protocol, each as something to try on a drafter.

A rule is a coroutine function whose docstring says it. It raises `Violation` where the drafter does
not keep it; anything else that it raises is a violation too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import grpc
from outrider.v1 import draft_pb2
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.draft_tree import Limits

from outrider_conformance.faults import Faults, FaultyStream
from outrider_conformance.streams import LinkEnded
from outrider_conformance.target import Target, TargetSession, Violation
from outrider_conformance.trial import Trial

Rule = Callable[[Trial], Awaitable[None]]

RULES: list[Rule] = []
"""All rules, in the order in which they build on each other."""

_UNKNOWN_VERSION = 2**31


def rule(tried: Rule) -> Rule:
    """Adds a rule."""
    RULES.append(tried)
    return tried


@rule
async def describes_itself(trial: Trial) -> None:
    """`Describe` tells kind, capacity, and a range of versions that holds this one."""
    told = trial.described
    _hold(bool(told.drafter.kind), "`kind` is empty")
    _hold(told.drafter.max_sessions >= 1, "`max_sessions` is 0")
    versions = range(told.min_protocol_version, told.max_protocol_version + 1)
    _hold(PROTOCOL_VERSION in versions, f"version {PROTOCOL_VERSION} is not within {versions}")


@rule
async def welcomes(trial: Trial) -> None:
    """A `Hello` that fits is answered with a `Welcome`: a version in use, the same description."""
    async with trial.link() as target:
        assert target.welcome is not None
        _hold(target.welcome.protocol_version == PROTOCOL_VERSION, "it speaks another version")
        _hold(target.welcome.drafter == trial.drafter, "it describes itself differently")


@rule
async def refuses_unknown_versions(trial: Trial) -> None:
    """A version out of range ends the link with FAILED_PRECONDITION and a reason."""
    async with trial.ungreeted() as target:
        try:
            await target.hello(
                version=_UNKNOWN_VERSION, fingerprint=trial.drafter.tokenizer_fingerprint
            )
        except LinkEnded as end:
            _hold(end.code == grpc.StatusCode.FAILED_PRECONDITION, f"the status is {end.code}")
            _hold(bool(end.details), "no reason is given")
            return
    raise Violation("it welcomed a version that does not exist")


@rule
async def refuses_other_tokenizers(trial: Trial) -> None:
    """A model's tokenizer must be the target's: else FAILED_PRECONDITION. Others take any."""
    async with trial.ungreeted() as target:
        try:
            await target.hello(fingerprint="no tokenizer has this fingerprint")
        except LinkEnded as end:
            _hold(bool(trial.drafter.tokenizer_fingerprint), "it works on ids, yet refuses")
            _hold(end.code == grpc.StatusCode.FAILED_PRECONDITION, f"the status is {end.code}")
            return
    _hold(not trial.drafter.tokenizer_fingerprint, "it welcomed a tokenizer that is not its own")


@rule
async def answers_an_open(trial: Trial) -> None:
    """Every `Open` is answered with a `Grow` that is `complete`, no deeper than the limits."""
    async with trial.link() as target:
        session = await target.open(1, trial.text(), window=4)
        await target.grown(1)
        _hold(_depth(session) <= 4, "the tree is too deep")


@rule
async def goes_on_from_what_was_accepted(trial: Trial) -> None:
    """What a `Commit` confirms survives; growth goes on below it."""
    async with trial.link() as target:
        session = await target.open(1, trial.text(), window=2, run_ahead=2)
        for _ in range(8):
            chain = await target.grown(1)
            await target.commit(1, chain[:1] or trial.text(1))
        await target.grown(1)
        _hold(not session.resyncs, "it lost a session that did nothing unusual")


@rule
async def starts_anew_after_a_correction(trial: Trial) -> None:
    """A `Commit` that leaves the tree empties it; the answer builds on the new end."""
    async with trial.link() as target:
        session = await target.open(1, trial.text(), window=4)
        for _ in range(4):
            chain = await target.grown(1)
            await target.commit(1, [trial.other_than(chain)])
        await target.grown(1)
        _hold(not session.resyncs, "it lost a session that did nothing unusual")


@rule
async def keeps_tenants_apart(trial: Trial) -> None:
    """What one tenant's session wrote is not proposed to another tenant's, nor to one without."""
    secret = trial.random_text(28)
    async with trial.link() as target:
        await target.open(1, secret[:4], window=4, tenant=b"one")
        for start in range(4, len(secret), 4):
            await target.grown(1)
            await target.commit(1, secret[start : start + 4])
        await target.grown(1)
        await target.close(1)
        for number, tenant in ((2, b"two"), (3, b"")):
            await target.open(number, secret[:12], window=8, tenant=tenant)
            chain = await target.grown(number)
            _hold(chain[:4] != secret[12:16], "it told one tenant what another was written")
            await target.close(number)


@rule
async def takes_a_commit_twice(trial: Trial) -> None:
    """`Commit` is idempotent: the same one again, or one that overlaps, changes nothing."""
    async with trial.link() as target:
        text = trial.text()
        session = await target.open(1, text, window=2)
        await target.grown(1)
        tokens = trial.text(3)
        await target.commit(1, tokens)
        await target.commit(1, tokens, base_length=len(text))
        await target.commit(1, [*tokens[1:], tokens[0]], base_length=len(text) + 1)
        await target.grown(1)
        _hold(not session.resyncs, "it answered an overlap with Resync")


@rule
async def asks_for_what_is_missing(trial: Trial) -> None:
    """A `Commit` beyond what is held is answered with `Resync` and the length held."""
    async with trial.link() as target:
        text = trial.text()
        session = await target.open(1, text, window=2)
        await target.grown(1)
        lost, told = trial.text(2), trial.text(2)
        session.tree.commit(len(text), lost)
        await target.commit(1, told)
        resync = await target.resynced(1)
        _hold(not resync.refused, "it refused the session")
        _hold(resync.held_length <= len(text), f"it claims to hold {resync.held_length} tokens")
        missing = session.tree.token_ids[resync.held_length :]
        await target.commit(1, missing, base_length=resync.held_length)
        await target.grown(1)


@rule
async def knows_no_session_by_itself(trial: Trial) -> None:
    """A `Commit` for an unknown session is answered with `Resync` at 0; a `Close` is ignored."""
    async with trial.link() as target:
        target.open_message(5, trial.text())  # the target's own copy; the drafter hears nothing
        await target.close(99)
        await target.commit(5, trial.text(1))
        resync = await target.resynced(5)
        _hold(resync.held_length == 0, f"it claims to hold {resync.held_length} tokens")


@rule
async def forgets_what_is_closed(trial: Trial) -> None:
    """After `Close` nothing is held; the number may be opened again."""
    async with trial.link() as target:
        before = (await trial.describe()).num_sessions
        await target.open(1, trial.text())
        await target.grown(1)
        await target.close(1)
        await _until_held(trial, before)
        await target.open(1, trial.text())
        await target.grown(1)


@rule
async def replaces_what_is_opened_again(trial: Trial) -> None:
    """`Open` for a number in use replaces the session; node ids stay new."""
    async with trial.link() as target:
        first = await target.open(1, trial.text(), window=3)
        await target.grown(1)
        last_id = first.tree.last_id
        second = await target.open(1, trial.text(), window=3)
        await target.grown(1)
        ids = [i for grow in second.grows for i in grow.node_ids]
        _hold(all(i > last_id for i in ids), "it used node ids twice in a session")


@rule
async def keeps_to_new_limits(trial: Trial) -> None:
    """Limits that come with a `Commit` hold from there on."""
    async with trial.link() as target:
        session = await target.open(1, trial.text(), window=8)
        await target.grown(1)
        chain = session.chain
        narrow = Limits(1, 1, session.max_nodes, 0.0)
        await target.commit(1, [trial.other_than(chain)], limits=narrow)
        await target.grown(1)
        _hold(_depth(session) <= 1, "the tree is too deep")


@rule
async def keeps_links_apart(trial: Trial) -> None:
    """Sessions of two targets have nothing in common but the drafter."""
    async with trial.link() as one, trial.link() as other:
        await one.open(1, trial.text(), window=2)
        await other.open(1, trial.text(), window=2)
        await one.grown(1)
        await one.close(1)
        chain = await other.grown(1)
        await other.commit(1, chain[:1] or trial.text(1))
        await other.grown(1)


@rule
async def answers_all_in_a_frame(trial: Trial) -> None:
    """A frame with many updates is taken as a whole; every session is answered."""
    count = min(16, trial.drafter.max_sessions)
    async with trial.link() as target:
        opens = [target.open_message(i, trial.text(), window=2) for i in range(1, count + 1)]
        await target.send(draft_pb2.SpeculateRequest(opens=opens))
        for number in range(1, count + 1):
            await target.grown(number)


@rule
async def survives_nonsense(trial: Trial) -> None:
    """Ids outside the vocabulary, empty texts and impossible numbers cost at most their link."""
    nonsense = [
        draft_pb2.Open(session=1),
        draft_pb2.Open(session=1, token_ids=[2**32 - 1], num_prompt_tokens=2**32 - 1),
        draft_pb2.Open(session=1, token_ids=[0], limits=draft_pb2.Limits(window=2**32 - 1)),
        draft_pb2.Open(session=2**64 - 1, token_ids=[0], draft_temperature=float("nan")),
    ]
    for opened in nonsense:
        async with trial.link() as target:
            await target.send(draft_pb2.SpeculateRequest(opens=[opened]))
            await asyncio.sleep(0.05)
    async with trial.link() as target:
        await target.open(1, trial.text())
        await target.grown(1)


@rule
async def forgets_a_target_that_is_gone(trial: Trial) -> None:
    """When a link is cut, its sessions are dropped."""
    before = (await trial.describe()).num_sessions
    async with trial.link() as target:
        for number in range(1, 1 + min(4, trial.drafter.max_sessions)):
            await target.open(number, trial.text())
            await target.grown(number)
    await _until_held(trial, before)


@rule
async def survives_a_bad_network(trial: Trial) -> None:
    """Late, lost, doubled and reordered frames: when the network heals, drafting goes on."""
    for seed in range(4):
        faults = Faults(delay=0.002, loss=0.1, duplication=0.2, reordering=0.2, seed=seed)
        async with trial.link(faults) as target:
            await _wander(trial, target, random.Random(seed))


async def _wander(trial: Trial, target: Target, chance: random.Random) -> None:
    """Commit this and that over a bad network, heal it, and insist on an answer."""
    assert isinstance(target.stream, FaultyStream)
    sessions = range(1, 1 + min(3, trial.drafter.max_sessions))
    for number in sessions:
        await target.open(number, trial.text(), window=3, run_ahead=2)
    for _ in range(20):
        number = chance.choice(sessions)
        chain = target.sessions[number].chain
        accepted = chain[: chance.randint(0, len(chain))]
        await target.commit(number, [*accepted, trial.text(1)[0]])
        await asyncio.sleep(0.001)
    _hold(target.stream.harmed > 0, "the network did no harm: nothing was tried")
    target.stream.heal()
    for number in sessions:
        # The target is the only truth: all of it once more makes good whatever was lost.
        session = target.sessions[number]
        await target.open(number, session.tree.token_ids, window=3)
        await target.grown(number)


def _depth(session: TargetSession) -> int:
    """Of the deepest proposal below the committed tokens."""
    tree = session.tree
    pending = tree.children()
    deepest = 0
    while pending:
        node = pending.pop()
        deepest = max(deepest, tree.depth(node))
        pending.extend(tree.children(node.id))
    return deepest


async def _until_held(trial: Trial, num_sessions: int) -> None:
    """Wait until the drafter holds no more sessions than before."""
    try:
        async with asyncio.timeout(trial.timeout):
            while (await trial.describe()).num_sessions > num_sessions:
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise Violation(f"it still holds sessions after {trial.timeout:g} s") from None


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
