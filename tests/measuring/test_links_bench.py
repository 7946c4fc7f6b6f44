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
    ("agreement", "round_trip_ms", "synchronous", "run_ahead"),
    [
        (0.7, 0.2, 2.12, 2.19),
        (0.7, 10, 1.71, 1.80),
        (0.85, 0.2, 3.16, 3.43),
        (0.85, 10, 2.65, 2.94),
    ],
)
def test_the_model_gives_known_values_at_the_best_window(
    agreement: float, round_trip_ms: float, synchronous: float, run_ahead: float
) -> None:
    """Forwards of 30 ms, steps of drafting of 2 ms."""
    known = [deployment(agreement, g, round_trip_ms=round_trip_ms) for g in range(1, 20)]
    assert max(map(link_model.synchronous, known)) == pytest.approx(synchronous, abs=0.01)
    best = max(link_model.prepared(of, hit_rate=link_model.run_ahead_hit_rate(of)) for of in known)
    assert best == pytest.approx(run_ahead, rel=0.04)


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
            socket.create_connection(tuple(line.address.rsplit(":", 1))) as near,
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
