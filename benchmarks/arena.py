"""Everybody on a pair, started: Outrider's services and the processes of the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import outrider_services
from benchmarks.contenders import Workload
from benchmarks.measurement import Field
from benchmarks.pairs.catalogue import Pair
from benchmarks.peers.catalogue import PEERS, missing
from benchmarks.peers.process import Peer, PeerFailed, PeerProcess
from benchmarks.tuning import Tuned


@contextmanager
def arena(
    pair: Pair, trial: Workload, *, streams: int, wanted: Callable[[str], bool]
) -> Iterator[Field]:
    """All contenders whose names are wanted, tuned on the trial."""
    with ExitStack() as stack:
        threads = outrider_services.fastest_threads(pair, trial)
        services = stack.enter_context(
            outrider_services.serve(pair, streams=streams, threads=threads)
        )
        ours = [each for each in outrider_services.contenders(services.client) if wanted(each.name)]
        known = Field(ours, memory={each.name: services.peak_megabytes for each in ours})
        _add_peers(known, pair, stack, wanted)
        known.tune(trial)
        yield known


def _add_peers(known: Field, pair: Pair, stack: ExitStack, wanted: Callable[[str], bool]) -> None:
    processes: dict[str, PeerProcess] = {}
    memory = dict(known.memory)
    for peer in PEERS:
        if not wanted(peer.name):
            continue
        if (reason := missing(peer.engine)) is not None:
            known.absent[peer.name] = reason
            continue
        process = processes.get(peer.engine) if peer.shares_process else None
        if process is None:
            try:
                process = stack.enter_context(PeerProcess(peer.engine, pair))
            except PeerFailed as error:
                known.absent[peer.name] = f"does not start: {error}"
                continue
            if peer.shares_process:
                processes[peer.engine] = process
        known.contenders.append(
            Tuned(
                peer.name,
                [Peer(peer.name, process, setting) for setting in peer.settings],
                peer.samples,
            )
        )
        memory[peer.name] = process.peak_megabytes
    known.memory = memory
