"""One form for all that is logged, and nothing in it that should not be."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from outrider_runtime import logs


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configuration = structlog.get_config()
    yield
    structlog.configure(**configuration)
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_those_of_libraries_have_the_same_form() -> None:
    stream = io.StringIO()
    logs.configure(logs.LogLevel.INFO, logs.LogFormat.AUTO, stream=stream)  # not a terminal: JSON
    structlog.contextvars.bind_contextvars(request_id="r-1")
    structlog.get_logger("ours").info("request_finished", num_rounds=3)
    logging.getLogger("theirs").warning("careful: %s", "x", extra={"port": 1})
    ours, theirs = lines(stream)
    assert ours.pop("timestamp").endswith("Z")
    assert theirs.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "request_finished",
        "level": "info",
        "logger": "ours",
        "num_rounds": 3,
        "request_id": "r-1",
    }
    assert theirs == {
        "event": "careful: x",
        "level": "warning",
        "logger": "theirs",
        "port": 1,
        "request_id": "r-1",
    }


@pytest.mark.parametrize("log_format", [logs.LogFormat.JSON, logs.LogFormat.CONSOLE])
def test_a_traceback_has_no_values_of_variables(log_format: logs.LogFormat) -> None:
    stream = io.StringIO()
    logs.configure(log_format=log_format, stream=stream)
    prompt = "".join(["my ", "secret"])
    try:
        raise ValueError(len(prompt))
    except ValueError:
        structlog.get_logger("ours").exception("call_failed")
    assert "ValueError: 9" in stream.getvalue()
    assert "my secret" not in stream.getvalue()


def test_less_than_the_level_is_not_logged() -> None:
    stream = io.StringIO()
    logs.configure(logs.LogLevel.WARNING, logs.LogFormat.JSON, stream=stream)
    for logger in (structlog.get_logger("ours"), logging.getLogger("theirs")):
        logger.info("quiet")
        logger.warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud", "loud"]


def test_a_line_break_in_a_value_does_not_make_two_lines() -> None:
    stream = io.StringIO()
    logs.configure(log_format=logs.LogFormat.JSON, stream=stream)
    structlog.get_logger("ours").info("link_lost", reason='a\n{"event": "forged"}')
    assert [line["event"] for line in lines(stream)] == ["link_lost"]
