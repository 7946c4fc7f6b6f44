"""The command `outrider`: what it prints, asks of the server, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from client.fake_server import Failure, FakeServer, Responses, chunk, complete, started
from outrider.v1 import generation_config_pb2, speculation_pb2
from outrider_client._commands import app
from outrider_client._commands.app import run
from outrider_client._completion import Chunk

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Outrider:
    """Runs commands in this process, against the fake server."""

    def __init__(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        self._server = server
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ended:
        with pytest.raises(SystemExit) as caught:
            run(arguments)
        out, err = self._capsys.readouterr()
        code = caught.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    def at(self, command: str, *arguments: str) -> Ended:
        return self(command, "--server", self._server.address, *arguments)


@pytest.fixture
def outrider(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Outrider:
    for name in os.environ:
        if name.startswith("OUTRIDER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    return Outrider(server, capsys)


def test_generate_prints_the_text(outrider: Outrider) -> None:
    assert outrider.at("generate", "def main(") == (0, "<10><11><12><13>\n", "")


def test_generate_asks_for_what_the_options_say(outrider: Outrider, server: FakeServer) -> None:
    ended = outrider.at(
        "generate",
        *("--set", "max_new_tokens=64", "--set", "do_sample=true", "--set", "top_p=0.9"),
        *("--set", 'stop_strings=["END", "a=b"]', "--set", "eos_token_id=null"),
        *("--set", "num_assistant_tokens_schedule=heuristic"),
        *("--seed", "7", "--request-id", "mine", "--timeout", "50", "--api-key", "s3cret"),
        *("--speculation", "method=prompt-lookup", "--speculation", "max_assistant_tokens=8"),
        "def main(",
    )
    assert ended.code == 0, ended.err
    call = server.received[0]
    assert call.request.generation_config == generation_config_pb2.GenerationConfig(
        max_new_tokens=64,
        do_sample=True,
        top_p=0.9,
        stop_strings=generation_config_pb2.StringList(values=["END", "a=b"]),
        num_assistant_tokens_schedule="heuristic",
        clear_fields=["eos_token_id"],
    )
    assert call.request.speculation == speculation_pb2.SpeculationConfig(
        method=speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP, max_assistant_tokens=8
    )
    assert (call.request.seed, call.request.request_id, call.request.text) == (
        7,
        "mine",
        "def main(",
    )
    assert call.metadata["authorization"] == "Bearer s3cret"
    assert call.seconds_left is not None
    assert call.seconds_left < 55


def test_a_prediction_is_a_file_or_a_text(
    outrider: Outrider, server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "expected.py").write_text("def main():\n")
    for given, sent in (
        (str(tmp_path / "expected.py"), "def main():\n"),
        ("no such file", "no such file"),
    ):
        server.received.clear()
        assert outrider.at("generate", "--prediction", given, "x").code == 0
        assert server.received[0].request.speculation.prediction_text == sent


def test_generate_asks_for_log_probabilities_only_where_they_can_be_shown(
    outrider: Outrider, server: FakeServer
) -> None:
    ended = outrider.at("generate", "--log-probs", "3", "--json", "x")
    assert ended.code == 0, ended.err
    assert server.received[0].request.log_probs.num_top == 3
    assert json.loads(ended.out)["sequences"][0]["log_probs"] == []  # this server tells none
    ended = outrider.at("generate", "--log-probs", "3", "x")
    assert ended.code == 2
    assert "--log-probs" in ended.err
    assert len(server.received) == 1


def test_generate_sends_a_negative_prompt_as_the_prompt_is(
    outrider: Outrider, server: FakeServer
) -> None:
    assert outrider.at("generate", "--negative-prompt", "sad", "x").code == 0
    assert outrider.at("generate", "--token-ids", "--negative-prompt", "4 5", "6").code == 0
    text, ids = (call.request for call in server.received)
    assert text.negative_text == "sad"
    assert list(ids.negative_token_ids.ids) == [4, 5]
    assert outrider.at("generate", "x").code == 0
    assert server.received[2].request.WhichOneof("negative_prompt") is None


def test_generate_names_plugins_with_their_parameters(
    outrider: Outrider, server: FakeServer
) -> None:
    ended = outrider.at(
        "generate",
        *("--logits-processor", 'avoid={"letters": "x=y"}', "--logits-processor", "other"),
        *("--stopping-criterion", 'sentences={"at_most": 3}'),
        "x",
    )
    assert ended.code == 0, ended.err
    request = server.received[0].request
    assert [(one.name, one.parameters) for one in request.logits_processors] == [
        ("avoid", '{"letters": "x=y"}'),
        ("other", ""),
    ]
    assert [one.name for one in request.stopping_criteria] == ["sentences"]
    for wrong in ("avoid={", "avoid=5"):
        ended = outrider.at("generate", "--logits-processor", wrong, "x")
        assert ended.code == 2
        assert "--logits-processor: the parameters of avoid" in ended.err


def test_generate_prints_what_healing_added_to_the_prompt_before_its_text(
    outrider: Outrider, server: FakeServer
) -> None:
    def healing(request: Any, context: Any) -> Responses:
        message = started(request)
        message.chunk.started.healed_prompt.text = "see http"
        message.chunk.started.healed_prompt.token_ids.extend([5, 6])
        yield message
        yield chunk([10])
        yield complete([1])

    server.script = healing
    assert outrider.at("generate", " see ht") == (0, "tp<10>\n", "")
    printed = json.loads(outrider.at("generate", "--json", "see ht").out)
    assert printed["healed_prompt"] == {"token_ids": [5, 6], "text": "see http"}


def test_score_prints_each_token_and_the_whole(outrider: Outrider, server: FakeServer) -> None:
    ended = outrider.at("score", "--token-ids", "--first-position", "2", "4 5 6 7")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        "  -1.0000  6",
        "  -1.0000  7",
        "log-likelihood  -2.0000",
        "perplexity      2.718",
    ]
    assert server.received[0].request.first_position == 2
    ended = outrider.at("score", "--token-ids", "--json", "--log-probs", "1", "4,5")
    assert json.loads(ended.out) == {
        "log_likelihood": -1.0,
        "scores": {
            "token_ids": [5],
            "log_probs": [
                {
                    "raw": -1.0,
                    "processed": -0.5,
                    "score": 3.0,
                    "top_raw": [{"token_id": 7, "log_prob": -0.25}],
                    "top_processed": [],
                }
            ],
        },
    }


def test_generate_asks_for_nothing_by_itself(outrider: Outrider, server: FakeServer) -> None:
    outrider.at("generate", "x")
    outrider.at("generate", "--no-speculation", "x")
    plain, without = [call.request for call in server.received]
    assert not plain.generation_config.ListFields()
    assert not plain.HasField("speculation")
    assert without.speculation == speculation_pb2.SpeculationConfig(enabled=False)


def test_generate_asks_for_the_form_that_the_options_say(
    outrider: Outrider, server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "null"}')
    outrider.at("generate", "--json-schema", str(tmp_path / "schema.json"), "x")
    outrider.at("generate", "--json-schema", '{"type": "string"}', "x")
    outrider.at("generate", "--regex", "a+", "x")
    outrider.at("generate", "--choice", "yes", "--choice", "no", "x")
    file, text, regex, choices = [call.request.structured_output for call in server.received]
    assert file.json_schema == '{"type": "null"}'
    assert text.json_schema == '{"type": "string"}'
    assert regex.regex == "a+"
    assert list(choices.choices.values) == ["yes", "no"]
    both = outrider.at("generate", "--regex", "a", "--choice", "b", "x")
    missing = outrider.at("generate", "--json-schema", str(tmp_path / "none.json"), "x")
    for ended in (both, missing):
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_generate_prints_one_json_object(outrider: Outrider) -> None:
    ended = outrider.at("generate", "--json", "--set", "top_k=3", "--seed", "5", "x")
    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    found = json.loads(ended.out)
    assert found["text"] == "<10><11><12><13>"
    assert found["token_ids"] == [10, 11, 12, 13]
    assert found["finish_reason"] == "length"
    assert found["seed"] == 5
    assert found["effective_config"] == {"top_k": 3}
    assert found["usage"]["completion_tokens"] == 4
    assert found["speculation"]["num_accepted_tokens"] == 2
    assert found["sequences"][0]["drafted"] == [True, False, True, False]


def test_generate_takes_token_ids_and_gives_them(outrider: Outrider, server: FakeServer) -> None:
    assert outrider.at("generate", "--token-ids", "5, 6 7").out == "10 11 12 13\n"
    assert list(server.received[0].request.token_ids.ids) == [5, 6, 7]
    assert outrider.at("generate", "--token-ids", "five").code == 2


def test_generate_reads_a_configuration_and_sets_over_it(
    outrider: Outrider, server: FakeServer, tmp_path: Path
) -> None:
    values = {"max_new_tokens": 9, "top_k": 3, "top_p": 0.5}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    arguments = ["--config", str(tmp_path), "--set", "top_k=4", "--set", "top_p=null", "x"]
    assert outrider.at("generate", *arguments).code == 0
    assert server.received[0].request.generation_config == generation_config_pb2.GenerationConfig(
        max_new_tokens=9, top_k=4, clear_fields=["top_p"]
    )
    missing = outrider.at("generate", "--config", str(tmp_path / "none"), "x")
    assert (missing.code, len(missing.err.splitlines())) == (2, 1)


def test_generate_prints_several_sequences_one_by_one(
    outrider: Outrider, server: FakeServer
) -> None:
    def two(request: Any, context: Any) -> Responses:
        yield started(request)
        yield chunk([20], sequence_index=1)
        yield chunk([10], sequence_index=0)
        yield complete((1, 1))

    server.script = two
    ended = outrider.at(
        "generate", "--set", "num_return_sequences=2", "--set", "do_sample=true", "x"
    )
    assert ended.out == "[0] <10>\n[1] <20>\n"


def test_generate_says_what_it_took_when_asked(outrider: Outrider) -> None:
    ended = outrider.at("generate", "--stats", "x")
    assert "4 tokens in 2.00 s, 2.0 tokens/s, 2 of 4 draft tokens accepted" in ended.err
    assert "mean acceptance length 2.00, finish reason length, seed 7" in ended.err
    assert ended.out == "<10><11><12><13>\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "max_new_token=3"), "'max_new_token' is not a field of GenerationConfig; did "),
        (("--set", "zzz=3"), "'zzz' is not a field of GenerationConfig\n"),
        (("--set", "clear_fields=[]"), "'clear_fields' is not a field"),
        (("--set", "max_new_tokens"), "must be name=value, got 'max_new_tokens'"),
        (("--set", "max_new_tokens=0"), "max_new_tokens: must be at least 1, got 0"),
        (("--set", "max_new_tokens=many"), "max_new_tokens: must be an integer"),
        (("--set", "temperature=NaN"), "temperature: must be"),
        (("--set", "num_return_sequences=2"), "num_return_sequences: must be 1 unless do_sample"),
        (("--speculation", "metod=none"), "'metod' is not a field of SpeculationConfig; did you"),
        (("--speculation", "run_ahead=100"), "run_ahead: must be an integer in [0, 64], got 100"),
        (("--seed", "-1"), "seed: must be in [0, 2**64), got -1"),
        (("--timeout", "0"), "timeout: must be in"),
        (("--request-id", "a\nb"), "request_id: must be 1 to 128"),
        (("--ssl-ca-certs", "missing.pem"), "missing.pem"),
        (("--ssl-keyfile", "client.key"), "cert and key belong together"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(
    outrider: Outrider, server: FakeServer, arguments: tuple[str, ...], says: str
) -> None:
    ended = outrider.at("generate", *arguments, "x")
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.startswith("outrider: ")
    assert len(ended.err.splitlines()) == 1
    assert server.received == []


def test_an_error_of_the_server_is_one_line_and_exit_code_1(
    outrider: Outrider, server: FakeServer
) -> None:
    server.failures.append(
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "num_beams: not served\nyet", request_id="r1")
    )
    ended = outrider.at("generate", "--set", "num_beams=4", "x")
    assert ended == (1, "", "outrider: num_beams: not served yet (request r1)\n")


def test_a_stream_that_breaks_off_ends_its_line_and_says_why(
    outrider: Outrider, server: FakeServer
) -> None:
    def breaking(request: Any, context: Any) -> Responses:
        yield started(request)
        yield chunk([10])
        context.abort(grpc.StatusCode.INTERNAL, "a bug")

    server.script = breaking
    ended = outrider.at("generate", "--request-id", "r1", "x")
    assert ended == (1, "<10>\n", "outrider: the stream broke off: a bug (request r1)\n")


def test_an_unreachable_server_is_named(outrider: Outrider) -> None:
    with socket.socket() as unused:  # bound, not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        ended = outrider("info", "--server", address, "--timeout", "10")
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert ended.err.startswith(f"outrider: {address} cannot be reached: ")


def test_options_can_come_from_the_environment(
    outrider: Outrider, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_SERVER", server.address)
    monkeypatch.setenv("OUTRIDER_API_KEY", "s3cret")
    monkeypatch.setenv("OUTRIDER_TIMEOUT", "40")
    monkeypatch.setenv("OUTRIDER_SEED", "3")
    assert outrider("generate", "x").code == 0
    assert outrider("generate", "--seed", "4", "--api-key", "other", "x").code == 0
    first, second = server.received
    assert (first.request.seed, first.metadata["authorization"]) == (3, "Bearer s3cret")
    assert (second.request.seed, second.metadata["authorization"]) == (4, "Bearer other")
    assert first.seconds_left is not None
    assert first.seconds_left < 45


def test_info_shows_model_server_and_draft_links(outrider: Outrider) -> None:
    lines = outrider.at("info").out.splitlines()
    assert "model       fake (FakeForCausalLM, float32)" in lines
    assert 'defaults    {"temperature": 0.7, "eos_token_id": 2}' in lines
    assert "draft link  127.0.0.1:50052, ready, model, 2 sessions, 1.0 ms" in lines
    assert "draft link  127.0.0.1:50053, refused, the tokenizers differ" in lines
    assert "plug-in     avoid (logits processor): Avoids letters." in lines
    found = json.loads(outrider.at("info", "--json").out)
    assert found["model"]["vocab_size"] == 1000
    assert found["server"]["draft_links"][0]["state"] == "ready"
    fields = outrider.at("info", "--fields").out.splitlines()
    assert fields == ["top_p      honoured", "num_beams  refused   no beams"]


def test_loads_shows_numbers(outrider: Outrider) -> None:
    out = outrider.at("loads").out
    assert "running       3 of 16 sequences\n" in out
    assert "waiting       1 of 8 requests\n" in out
    assert "longest wait  2.5 s\n" in out
    assert "new requests  refused: it drains\n" in out
    assert "KV cache      25.0% in use\n" in out
    assert json.loads(outrider.at("loads", "--json").out)["num_waiting_requests"] == 1


def test_explain_says_what_limits_the_speed(outrider: Outrider) -> None:
    out = outrider.at("explain").out
    assert "forward    5.0 ms a round\n" in out
    assert "no draft   70% not worth asking\n" in out
    assert "\nAsking costs.\n  Do not.\n" in out
    assert "speed-up" not in out, "nobody has measured it"
    assert json.loads(outrider.at("explain", "--json").out)["asking_cost_ratio"] == 1.5


def test_text_becomes_tokens_and_back(outrider: Outrider, server: FakeServer) -> None:
    assert outrider.at("tokenize", "ab").out == "97 98\n"
    assert json.loads(outrider.at("tokenize", "--json", "ab").out) == {"token_ids": [97, 98]}
    assert outrider.at("detokenize", "1,2", "3").out == "<1><2><3>\n"
    assert json.loads(outrider.at("detokenize", "--json", "1").out) == {"text": "<1>"}
    outrider.at("tokenize", "--no-special-tokens", "x")
    outrider.at("detokenize", "--special-tokens", "1")
    assert not server.received[-2].request.add_special_tokens
    assert not server.received[-1].request.skip_special_tokens


def test_abort_names_what_it_ended(outrider: Outrider) -> None:
    assert outrider.at("abort", "known-1", "known-2") == (0, "known-1\nknown-2\n", "")
    assert outrider.at("abort", "known-1", "gone") == (
        1,
        "known-1\n",
        "outrider: not running: gone\n",
    )


@pytest.mark.parametrize(
    "command", ["generate", "score", "info", "loads", "explain", "tokenize", "detokenize", "abort"]
)
def test_every_command_explains_itself(outrider: Outrider, command: str) -> None:
    ended = outrider(command, "--help")
    assert ended.code == 0
    help_text = ANSI.sub("", ended.out)
    for option in ("--server", "--timeout", "--api-key", "--ssl-ca-certs", "--json"):
        assert option in help_text
    for variable in ("OUTRIDER_SERVER", "OUTRIDER_API_KEY", "OUTRIDER_SSL_CA_CERTS"):
        assert variable in help_text
    assert command in ANSI.sub("", outrider("--help").out)


def test_the_version_is_told(outrider: Outrider) -> None:
    assert re.fullmatch(r"outrider \d+\.\d+\.\d+\n", outrider("--version").out)


def test_an_unknown_command_is_wrong_usage(outrider: Outrider) -> None:
    ended = outrider("nonsense")
    assert ended.code == 2
    assert "nonsense" in ended.err


def greet(name: str) -> None:
    """Greets somebody."""
    print(f"hello {name}")


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further commands: one that works, one that cannot be loaded, one with a name of ours."""
    found = [
        EntryPoint("greet", f"{__name__}:greet", app.GROUP),
        EntryPoint("broken", "no_such_module_anywhere:run", app.GROUP),
        EntryPoint("loads", f"{__name__}:greet", app.GROUP),
    ]
    monkeypatch.setattr(app, "entry_points", lambda group: found if group == app.GROUP else [])


@pytest.mark.usefixtures("entries")
def test_other_packages_bring_further_commands(outrider: Outrider) -> None:
    assert outrider("greet", "you") == (0, "hello you\n", "")
    listed = ANSI.sub("", outrider("--help").out)
    assert "Greets somebody." in listed
    assert "generate" in listed


@pytest.mark.usefixtures("entries")
def test_a_broken_command_of_another_package_harms_nobody_else(outrider: Outrider) -> None:
    assert outrider.at("generate", "x").code == 0
    assert "broken" in outrider("--help").out
    ended = outrider("broken")
    assert ended.code == 1
    assert ended.err.startswith("outrider: broken: cannot be loaded from no_such_module_anywhere")
    assert "running" in outrider.at("loads").out, "a name of ours cannot be taken"


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal."""
    command = [sys.executable, "-m", "outrider_client.cli", *arguments]
    ours, theirs = pty.openpty()
    base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    child = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**base, "TERM": "xterm", **environment},
    )
    os.close(theirs)
    written = b""
    try:
        while piece := _read(ours):
            written += piece
    finally:
        os.close(ours)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    return written.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1024)
    except OSError:  # how a terminal says that its other side is closed
        return b""


def test_on_a_terminal_accepted_tokens_stand_out(server: FakeServer) -> None:
    shown = on_a_terminal("generate", "--server", server.address, "x")
    assert shown == "\x1b[32m<10>\x1b[0m<11>\x1b[32m<12>\x1b[0m<13>\n"
    assert ANSI.sub("", shown) == "<10><11><12><13>\n"


def test_no_colour_is_no_colour(server: FakeServer) -> None:
    shown = on_a_terminal("generate", "--server", server.address, "x", NO_COLOR="1")
    assert shown == "<10><11><12><13>\n"
    assert [call.method for call in server.received] == ["Generate"]


def test_a_model_cannot_steer_the_terminal(server: FakeServer) -> None:
    def hostile(request: Any, context: Any) -> Responses:
        yield started(request)
        yield chunk([10], text="a\x1b]0;owned\x07\n\tb")
        yield complete((1,))

    server.script = hostile
    for environment in ({}, {"NO_COLOR": "1"}):
        shown = on_a_terminal("generate", "--server", server.address, "x", **environment)
        assert shown == "a\\x1b]0;owned\\x07\n\tb\n"


def painted(text: str, token_ids: list[int], drafted: list[bool], pieces: dict[int, str]) -> Any:
    from outrider_client._commands.painting import Painter

    painter = Painter(lambda ids: "".join(pieces[token] for token in ids))
    return list(painter._runs(Chunk(text, token_ids, drafted, 0)))


def test_text_is_split_where_the_drafter_ends() -> None:
    pieces = {1: "ab", 2: "c", 3: "def"}
    assert painted("abcdef", [1, 2, 3], [True, True, False], pieces) == [
        ("abc", True),
        ("def", False),
    ]
    assert painted("abcdef", [1, 2, 3], [False, False, False], pieces) == [("abcdef", False)]
    assert painted("def", [3], [True], pieces) == [("def", True)]
    assert painted("", [3], [True], pieces) == []
    assert painted("late", [], [], pieces) == [("late", False)]


def test_no_text_is_lost_or_repeated_whatever_the_tokenizer_says() -> None:
    for said in ("", "much longer than the text itself", "\N{REPLACEMENT CHARACTER}"):
        runs = painted("abc", [1, 2], [True, False], {1: said, 2: "x"})
        assert "".join(text for text, _ in runs) == "abc"
