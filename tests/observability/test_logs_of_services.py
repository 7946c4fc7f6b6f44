"""What services log of requests: whose line it is, and nothing of what was asked or answered."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from draft.harness import ScriptedProposer, counting
from exactness.running import wait_until
from observability.pages import REMOTE, Pair
from outrider_client import GenerationConfig, OutriderError, SpeculationConfig, StructuredOutput
from outrider_draft.engine import DraftEngine
from outrider_draft.metrics import DraftMetrics
from outrider_draft.settings import SessionSettings, StepSettings
from outrider_draft.updates import Opened, SessionKey, SessionRequest
from outrider_runtime import logs
from outrider_runtime.draft_tree import Limits
from outrider_runtime.sampling_parameters import SamplingParameters
from prometheus_client import CollectorRegistry
from service.asking import ENDLESS

SECRET = "xyzzy"
TOKENS = re.compile(r"\d+, ?\d+, ?\d+, ?\d+")
"""What several token ids would look like."""


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """All that is logged from debug on, as a service in production writes it."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    stream = io.StringIO()
    logs.configure(logs.LogLevel.DEBUG, logs.LogFormat.JSON, stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.configure(**configuration)
    root.handlers[:], root.level = handlers, level


def ask(pair: Pair, request_id: str, prompt: str = SECRET * 3, **options: Any) -> None:
    speculation = options.pop("speculation", REMOTE)
    structured = options.pop("structured_output", None)
    config = GenerationConfig(max_new_tokens=8, clear_fields=ENDLESS, **options)
    pair.client.generate(
        prompt,
        config,
        request_id=request_id,
        speculation=speculation,
        structured_output=structured,
    )


REFUSED: dict[str, dict[str, Any]] = {
    "empty": {"prompt": ""},
    "too-long": {"prompt": SECRET * 2000},
    "stop": {"stop_strings": [SECRET * 500]},
    "bad-word": {"bad_words_ids": [[10**9]]},
    "form": {"structured_output": StructuredOutput(regex=f"{SECRET}[")},
}


def test_no_line_holds_what_was_asked_or_answered(
    pair: Pair, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    ask(pair, "served")
    ask(pair, "sampled", do_sample=True, num_return_sequences=2)
    ask(pair, "looked-up", speculation=SpeculationConfig(method="prompt-lookup"))
    ask(pair, "stopped", stop_strings=[SECRET, "q"])
    pair.client.score(SECRET * 2, request_id="scored")
    pair.client.tokenize(SECRET)
    pair.client.detokenize([20, 21, 22, 23, 24, 25])
    for name, options in REFUSED.items():
        with pytest.raises(OutriderError) as refusal:
            ask(pair, name, **options)
        assert refusal.value.code.name == "INVALID_ARGUMENT", name
    wait_until(lambda: len(of(lines(), "call_refused")) == len(REFUSED))
    found = lines()
    assert {line["request_id"] for line in of(found, "call_refused")} == set(REFUSED)
    for line in of(found, "call_refused"):
        assert line["reason"]
        assert line["code"] == "INVALID_ARGUMENT"
    completed = {line["request_id"] for line in of(found, "request_completed")}
    assert completed >= {"served", "sampled", "looked-up", "stopped"}
    for line in found:
        assert SECRET not in json.dumps(line), line
        assert not TOKENS.search(json.dumps(line)), line


def of(found: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in found if line["event"] == event]


def test_every_line_of_a_request_names_it(
    pair: Pair, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """Also those of the engine's thread, which serves many at once."""
    serving = pair.target.serving
    assert serving is not None
    runner: Any = serving.engine._rounds._verifier._runner
    forward = runner.forward

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("on purpose")

    runner.forward = fail
    try:
        with pytest.raises(OutriderError):
            ask(pair, "faulty")
    finally:
        runner.forward = forward
    wait_until(lambda: bool(of(lines(), "call_refused")))
    found = lines()
    assert {"round_failed", "request_failed", "call_refused"} <= {line["event"] for line in found}
    for line in found:
        if not line["logger"].startswith("outrider"):
            continue
        assert line.get("request_id") == "faulty" or line.get("request_ids") == ["faulty"], line
    ask(pair, "next")


def test_a_drafters_lines_name_the_targets_request(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    def fail(tokens: Any) -> int:
        if tokens[0] == 7:
            raise RuntimeError("on purpose")
        return counting(tokens)

    engine = DraftEngine(
        ScriptedProposer(fail),
        sessions=SessionSettings(),
        steps=StepSettings(),
        metrics=DraftMetrics(CollectorRegistry()),
    )
    parameters = SamplingParameters(max_length=100)
    for number, first in ((1, 7), (2, 8)):
        request = SessionRequest(parameters, 1, vocab_size=1000, request_id=f"r-{number}")
        limits = Limits(window=2, depth=2, max_nodes=2, confidence_threshold=0.0)
        engine.apply(Opened(SessionKey(1, number), [first], request, limits))
    engine.step()
    (together,) = of(lines(), "step_failed")
    (alone,) = of(lines(), "session_failed")
    assert together["request_ids"] == ["r-1", "r-2"]
    assert alone["request_id"] == "r-1"


def test_a_terminal_is_shown_lines_that_people_read() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    stream = Terminal()
    try:
        logs.configure(stream=stream)
        structlog.get_logger("ours").info("request_completed", request_id="r-1", total_ms=3.5)
    finally:
        structlog.configure(**configuration)
        root.handlers[:], root.level = handlers, level
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert re.search(r"\[info +\] request_completed .*request_id=r-1 total_ms=3\.5", shown)
