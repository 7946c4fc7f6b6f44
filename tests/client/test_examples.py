"""The examples run as their first lines say."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from client.fake_server import Failure, FakeServer, Responses, chunk, complete, started
from client.node import FOLDER
from outrider.v1 import generation_pb2

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

Run = Callable[..., str]


@pytest.fixture
def run(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    def example(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, server.address, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return example


def test_every_example_is_listed_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    tested = Path(__file__).read_text()
    files = [file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".mjs")]
    assert files
    assert not [name for name in files if f"`{name}`" not in listed or f'"{name}"' not in tested]


def test_completing(run: Run, server: FakeServer) -> None:
    assert run("complete.py") == "<10><11><12><13>\n"
    assert server.received[0].request.seed == 7


def test_a_form(run: Run, server: FakeServer) -> None:
    texts = iter(['{"name": "Ada", "age": 36}', "True"])

    def formed(request: generation_pb2.GenerateRequest, context: object) -> Responses:
        yield started(request)
        yield chunk([10], text=next(texts))
        yield complete([1], finish_reason=generation_pb2.FINISH_REASON_STOP)

    server.script = formed
    assert run("structured_output.py") == "Ada 36\nTrue\n"
    schema, choices = [call.request.structured_output for call in server.received]
    assert json.loads(schema.json_schema)["required"] == ["name", "age"]
    assert choices.choices.values == ["True", "False"]


def test_a_prediction(run: Run, server: FakeServer) -> None:
    assert run("predicted_output.py") == "True\n2 rounds, 2 with a prediction\n"
    first, again = [call.request.speculation for call in server.received]
    assert (first.prediction_text, again.prediction_text) == ("", "<10><11><12><13>")


def test_streaming(run: Run, server: FakeServer) -> None:
    out = run("stream.py")
    assert out.startswith("<10><11><12><13>\n2 of 4 draft tokens accepted\n2.00 tokens")
    assert server.received[0].request.seed == 7


def test_generating(run: Run, server: FakeServer) -> None:
    assert "True 2.0" in run("generate.py")
    methods = [call.method for call in server.received]
    assert methods == ["Generate", "Tokenize", "Generate", "Generate", "Generate"]
    assert server.received[-1].request.seed == 7, "the seed that was drawn for the one before"


def test_many_at_once(run: Run, server: FakeServer) -> None:
    assert "'import os\\n<10><11><12><13>'" in run("many_at_once.py")
    assert len(server.received) == 5


def test_failing(run: Run, server: FakeServer) -> None:
    server.failures.extend(
        [
            Failure(grpc.StatusCode.INTERNAL, "a bug", request_id="r1"),
            Failure(grpc.StatusCode.INVALID_ARGUMENT, "is empty", field="prompt"),
        ]
    )
    out = run("failures.py")
    assert "request r1 failed: a bug" in out
    assert "refused (prompt): is empty" in out
    assert "top_p: must be in [0, 1], got 1.5" in out


def test_a_models_settings(run: Run, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_k": 9}')
    out = run("transformers_config.py", str(tmp_path))
    assert out.startswith("sample\n<10><11><12><13>\n")
    ours, theirs = [call.request.generation_config for call in server.received]
    assert (ours.top_k, theirs.top_k) == (9, 0)
    assert ours.temperature == theirs.temperature


def test_another_language(server: FakeServer, tmp_path: Path) -> None:
    """Its packages are those of the Node client, put where it looks for them."""
    node = shutil.which("node")
    assert node is not None, "the tests of other languages need node"
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLES / "stream.mjs", tmp_path / "examples")
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    done = subprocess.run(
        [node, str(tmp_path / "examples" / "stream.mjs"), server.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "<10><11><12><13>\n2 of 4 draft tokens accepted\n"
    assert server.received[0].request.generation_config.do_sample
