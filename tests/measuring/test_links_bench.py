"""What the link benchmark rests on: a line that takes its time, and the closed-form model."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from benchmarks import link_model
from benchmarks.link_model import Deployment
from benchmarks.slow_line import SlowLine


def deployment(agreement: float, window: int, *, round_trip_ms: float) -> Deployment:
    return Deployment(agreement, window, 0.030, 0.002, round_trip_ms / 1000)


@pytest.mark.parametrize(
    ("agreement", "round_trip_ms", "best"), [(0.8, 0, 7), (0.7, 0, 5), (0.9, 0, 12), (0.8, 50, 10)]
)
def test_the_best_window_is_the_known_one(
    agreement: float, round_trip_ms: float, best: int
) -> None:
    """As the optimum in closed form (by Lambert's W) has it, for the same times."""
    windows = range(1, 30)
    speeds = [
        link_model.synchronous(deployment(agreement, window, round_trip_ms=round_trip_ms))
        for window in windows
    ]
    assert windows[speeds.index(max(speeds))] == best


def test_what_is_prepared_costs_no_time_on_the_link_as_long_as_it_fits_into_a_forward() -> None:
    fits = deployment(0.8, 5, round_trip_ms=20)
    assert link_model.prepared(fits, hit_rate=1.0) == pytest.approx(fits.tokens_per_round)
    late = deployment(0.8, 5, round_trip_ms=50)
    assert link_model.prepared(late, hit_rate=1.0) < late.tokens_per_round
    assert link_model.prepared(fits, hit_rate=0.0) == link_model.synchronous(fits)


def test_a_line_delays_each_way_and_keeps_the_order() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(4096):
                    connection.sendall(data)

        threading.Thread(target=echo, daemon=True).start()
        with (
            SlowLine(f"127.0.0.1:{listener.getsockname()[1]}") as line,
            socket.create_connection(("127.0.0.1", int(line.address.split(":")[1]))) as near,
        ):
            near.settimeout(20)
            line.delay = 0.05
            started = time.monotonic()
            for word in (b"one ", b"two ", b"three"):
                near.sendall(word)
            received = b""
            while len(received) < len(b"one two three"):
                received += near.recv(4096)
            assert received == b"one two three"
            assert time.monotonic() - started >= 0.1
