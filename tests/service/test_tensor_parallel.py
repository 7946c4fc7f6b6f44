"""A model shared out over two processes: the text of one, by every road; and how they end.

float64, in which sums that are split otherwise decide no near tie (see `settings_for`).
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outrider_client import Client, Completion, GenerationConfig, OutriderError, SpeculationConfig
from outrider_demo.processes import Service
from service.asking import ENDLESS
from service.harness import PATIENCE

pytestmark = pytest.mark.timeout(300)  # three processes load torch on what cores there are

PLAIN = SpeculationConfig(enabled=False)
LOOKUP = SpeculationConfig(method="prompt-lookup")
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 12}
ROADS: dict[str, tuple[SpeculationConfig | None, dict[str, Any]]] = {
    "greedy": (PLAIN, {}),
    "greedy, drafted": (LOOKUP, {}),
    "sampled": (PLAIN, {**SAMPLED, "num_return_sequences": 3}),
    "sampled, drafted": (LOOKUP, {**SAMPLED, "num_return_sequences": 3}),
    "drafted by its own first layers": (
        SpeculationConfig(),
        {"assistant_early_exit": 2, "assistant_confidence_threshold": 0.0},
    ),
    "beams": (PLAIN, {"num_beams": 3}),
    "earlier layers": (PLAIN, {"dola_layers": "low"}),
    "what layers hold": (LOOKUP, {"output_attentions": True, "output_hidden_states": True}),
}
ACCEPTED = {"greedy, drafted", "sampled, drafted", "what layers hold"}
DRAFTED = {*ACCEPTED, "drafted by its own first layers"}  # those of a random model agree seldom


def flags(folder: Path) -> list[str]:
    return [
        "--model", str(folder), "--dtype", "float64", "--device", "cpu",
        "--tensor-parallel-size", "2", "--block-size", "8", "--kv-cache-tokens", "4096",
        "--num-assistant-tokens-schedule", "heuristic",
    ]  # fmt: skip


class TwoRanks(Service):
    """The service as torchrun starts it."""

    def __init__(self, folder: Path) -> None:
        super().__init__("outrider_target", flags(folder))
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self._command[1:1] = torchrun


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> Iterator[TwoRanks]:
    service = TwoRanks(folder)
    with service:
        yield service


def write(client: Client, road: str) -> Completion:
    speculation, options = ROADS[road]
    config = GenerationConfig(max_new_tokens=32, clear_fields=ENDLESS, **options)
    return client.generate(f"{road} and {road} and", config, seed=7, speculation=speculation)


def test_two_ranks_write_what_one_writes(client: Client, two_ranks: TwoRanks) -> None:
    with Client(two_ranks.address) as shared, ThreadPoolExecutor(len(ROADS)) as pool:
        found = dict(zip(ROADS, pool.map(lambda road: write(shared, road), ROADS), strict=True))
    for road, own in found.items():
        one = write(client, road)
        assert [each.token_ids for each in own.sequences] == [
            each.token_ids for each in one.sequences
        ], road
        assert (own.speculation.num_draft_tokens > 0) == (road in DRAFTED), road
        assert (own.speculation.num_accepted_tokens > 0) == (road in ACCEPTED), road
        layers = [
            (mine, theirs)
            for some, others in zip(own.sequences, one.sequences, strict=True)
            for name in ("hidden_states", "attentions")
            for step, known in zip(getattr(some, name), getattr(others, name), strict=True)
            for mine, theirs in zip(step, known, strict=True)
        ]
        assert bool(layers) == (road == "what layers hold")
        for mine, theirs in layers:
            assert mine.shape == theirs.shape
            np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), atol=1e-9)


# --- ends, without torchrun, which would end all processes when one ends


class Leader(Service):
    """Rank 0, with rank 1 beside it."""

    def __init__(self, folder: Path) -> None:
        super().__init__("outrider_target", flags(folder))
        with socket.create_server(("127.0.0.1", 0)) as free:
            meeting = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={free.getsockname()[1]} WORLD_SIZE=2"
        leading = ["env", *meeting.split(), "RANK=0", "LOCAL_RANK=0"]
        following = ["env", *meeting.split(), "RANK=1", "LOCAL_RANK=1"]
        self._following = [*following, *self._command]
        self._command = [*leading, *self._command]
        self.follower: subprocess.Popen[str]

    def start(self, *, timeout: float = PATIENCE) -> None:
        self.follower = subprocess.Popen(self._following, stderr=subprocess.PIPE, text=True)
        super().start(timeout=timeout)

    def stop(self) -> int:
        try:
            return super().stop()
        finally:
            with suppress(subprocess.TimeoutExpired):
                self.follower.wait(10)  # it ends by itself, a moment after the leader
            self.follower.kill()
            self.follower.wait()
            assert self.follower.stderr is not None
            self.follower.stderr.close()


@pytest.fixture
def leader(folder: Path) -> Iterator[Leader]:
    service = Leader(folder)
    with service:
        yield service


@pytest.mark.slow
def test_the_others_end_with_the_one_that_leads_and_not_before(leader: Leader) -> None:
    leader.follower.send_signal(signal.SIGTERM)  # as torchrun does to all
    with Client(leader.address) as client:
        write(client, "greedy")
    assert leader.stop() == 0
    assert leader.follower.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_lost_rank_ends_the_one_that_leads_with_one_clear_line(
    leader: Leader, busy: bool
) -> None:
    process = leader._process
    assert process is not None
    if busy:
        config = GenerationConfig(max_new_tokens=900, clear_fields=ENDLESS)
        with Client(leader.address, max_retries=0) as client, client.stream("a", config) as stream:
            next(stream)
            leader.follower.kill()
            with pytest.raises(OutriderError):
                list(stream)
    else:
        leader.follower.kill()
    assert process.wait(PATIENCE) == 1
    assert "rank 0 of 2" in leader.log().splitlines()[-1]


@pytest.mark.slow
def test_a_lost_leader_ends_the_others(leader: Leader) -> None:
    leader.kill()
    assert leader.follower.wait(PATIENCE) == 1
