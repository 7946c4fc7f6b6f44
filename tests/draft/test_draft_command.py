"""`outrider-draft` as people start it: one line when it serves, one line when it cannot."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from draft.harness import target
from draft.reference import Reference
from outrider_conformance.target import TIMEOUT
from outrider_draft.drafter import build
from outrider_draft.metrics import DraftMetrics
from outrider_draft.settings import ModelSettings
from outrider_runtime.errors import StartupError
from outrider_runtime.tokenizer import fingerprint, load_tokenizer
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM

SHIPPED = Path(__file__).parents[2] / "demo" / "outrider_demo" / "models" / "draft"
HEAVY = {"torch", "numpy", "transformers", "tokenizers", "safetensors", "huggingface_hub"}
START_TIMEOUT = 90.0  # seconds; importing torch takes its time on a busy machine


def environment(**variables: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OUTRIDER_")}
    return {**inherited, "OMP_NUM_THREADS": "1", "COLUMNS": "300", **variables}


@asynccontextmanager
async def command(*flags: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "outrider_draft",
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**variables),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        # Also closes the pipes.
        await process.communicate()


async def serving_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(START_TIMEOUT):
        return (await process.stdout.readline()).decode().strip()


async def refusal(*flags: str, **variables: str) -> str:
    """What a command that cannot start says; it must be one line, and the only output."""
    async with command(*flags, **variables) as process:
        async with asyncio.timeout(START_TIMEOUT):
            out, err = await process.communicate()
        assert process.returncode == 1, err
        assert out == b""
        (line,) = err.decode().splitlines()
        assert line.startswith("outrider-draft: ")
        return line


@pytest.mark.parametrize(
    ("method", "title"), [("prompt-lookup", "prompt lookup"), ("suffix", "suffix tree")]
)
async def test_what_needs_no_model_serves_without_importing_torch_or_its_like(
    method: str, title: str
) -> None:
    async with command("--method", method, "--port", "0", PYTHONPROFILEIMPORTTIME="1") as process:
        line = await serving_line(process)
        match = re.fullmatch(rf"outrider-draft serving on (127\S+) \({title}\)", line)
        assert match, line
        async with target(match[1]) as scripted:
            assert scripted.welcome_drafter.kind == method
            threshold = 0.9 if method == "prompt-lookup" else 0.0  # which has no doubts
            await scripted.open(1, [5, 6, 7, 8, 5, 6], window=3, confidence_threshold=threshold)
            assert await scripted.grown(1) == [7, 8, 5]
            process.send_signal(signal.SIGTERM)
            await scripted.until_ended()  # a link does not keep it from stopping
        async with asyncio.timeout(TIMEOUT):
            _, err = await process.communicate()
        assert process.returncode == 0
    imported = {
        module.split("|")[-1].strip().split(".")[0]
        for module in err.decode().splitlines()
        if module.startswith("import time:")
    }
    assert "outrider_draft" in imported
    assert not imported & HEAVY


async def test_the_shipped_draft_model_serves_its_own_continuation() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    assert tokenizer is not None
    tokens: list[int] = tokenizer("def main(argv):\n    parser =").input_ids
    async with command(
        OUTRIDER_MODEL=str(SHIPPED), OUTRIDER_PORT="0", OUTRIDER_LOG_LEVEL="warning"
    ) as process:
        line = await serving_line(process)
        match = re.fullmatch(
            r"outrider-draft serving on (\S+) \(model draft, \d+\.\dM float32 parameters\)", line
        )
        assert match, line
        async with target(match[1], vocab_size=len(tokenizer), hello=False) as scripted:
            await scripted.hello(fingerprint=fingerprint(tokenizer))
            await scripted.open(1, tokens, window=8)
            chain = await scripted.grown(1)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(TIMEOUT):
            _, err = await process.communicate()
        assert process.returncode == 0
        assert err == b""
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    assert chain == Reference(model).greedy(tokens, 8)


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = await refusal("--method", "prompt-lookup", "--port", port)
    assert f"port {port}" in line
    assert "taken" in line


async def test_without_a_model_the_command_says_what_to_give() -> None:
    assert "--model" in await refusal()
    for method in ("prompt-lookup", "suffix"):
        assert "exclude" in await refusal("--model", "x", "--method", method)
    needless = await refusal("--method", "prompt-lookup", "--target-tokenizer", "x")
    assert "--target-tokenizer is for a draft model" in needless


async def test_a_model_that_is_missing_or_broken_is_one_clear_line(tmp_path: Path) -> None:
    nowhere = ModelSettings(str(tmp_path / "nowhere"))
    with pytest.raises(StartupError, match="does not exist"):
        build(nowhere, DraftMetrics(CollectorRegistry()))
    (tmp_path / "config.json").write_text("{")
    assert str(tmp_path) in await refusal("--model", str(tmp_path))


async def test_a_flag_that_makes_no_sense_is_refused_by_name() -> None:
    async with command("--method", "prompt-lookup", "--max-sessions", "0") as process:
        async with asyncio.timeout(START_TIMEOUT):
            _, err = await process.communicate()
        assert process.returncode == 2
        assert b"--max-sessions" in err


@pytest.mark.parametrize(
    "flag",
    [
        "--model", "--target-tokenizer", "--method", "--host", "--port", "--dtype", "--device",
        "--threads", "--quantization",
        "--max-num-seqs", "--max-num-batched-tokens", "--max-sessions", "--max-sessions-per-target",
        "--max-model-len", "--kv-cache-tokens", "--max-matching-ngram-size", "--lookup-rule",
        "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--api-key", "--metrics-port",
        "--log-level", "--log-format",
    ],
)  # fmt: skip
def test_every_flag_has_a_variable(flag: str) -> None:
    from outrider_draft.__main__ import app
    from typer.main import get_command

    variables = {
        name: parameter.envvar
        for parameter in get_command(app).params
        for name in parameter.opts
        if hasattr(parameter, "envvar")
    }
    assert variables[flag] == "OUTRIDER_" + flag[2:].replace("-", "_").upper()
