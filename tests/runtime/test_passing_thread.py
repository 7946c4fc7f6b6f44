"""What runs a model before the serving thread does leaves no thread behind."""

from __future__ import annotations

import threading

import pytest
from outrider_runtime.passing_thread import passing


def test_the_thread_ends_with_the_call() -> None:
    thread = passing(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_arguments_results_and_faults_are_passed_on() -> None:
    assert passing(int, "ff", base=16) == 255
    with pytest.raises(ValueError, match="invalid literal"):
        passing(int, "x")
