"""Flags that services have in common, each with an `OUTRIDER_*` variable and a place in a file.

A flag is a typer option; what wins is flag over environment over `--config FILE` over default. Used
by `__main__` modules alone: nothing else reads flags or the environment. Knows nothing of what the
settings do.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider_runtime.errors import StartupError
from outrider_runtime.logs import LogFormat, LogLevel
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization


def flag(name: str, help: str, **options: Any) -> Any:  # noqa: A002  # typer's own word
    """A typer option `--name` that the variable `OUTRIDER_NAME` may set too.

    Args:
        name: Name of the flag with its dashes, such as `--max-num-seqs`; of one that may be turned
            off, `--on/--off`.
        help: One sentence for `--help`.
        options: Anything else that `typer.Option` takes.
    """
    variable = "OUTRIDER_" + name.partition("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(name, help=help, envvar=variable, **options)


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a TOML file: flags without their leading dashes, `-` or `_` inside.

    Raises:
        ValueError: The file cannot be read or is not TOML, a value is a table, or a setting is
        there twice.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    settings: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            raise ValueError(f"{path}: {key!r} is a table; settings are plain values")
        if name in settings:
            raise ValueError(f"{path}: {key!r} is there twice")
        settings[name] = value
    return settings


def _apply_config_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        settings = read_config_file(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    known = {p.name for p in context.command.params if p.name not in ("config", "help", None)}
    if unknown := sorted(settings.keys() - known):
        raise typer.BadParameter(
            f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    # Between environment and default is exactly where a default map stands.
    context.default_map = {**(context.default_map or {}), **settings}
    return path


@contextmanager
def startup_errors(program: str) -> Iterator[None]:
    """Ends the process with one line on standard error and status 1 on a StartupError."""
    try:
        yield
    except StartupError as error:
        typer.echo(f"{program}: {error}", err=True)
        raise typer.Exit(1) from None


ConfigFile = Annotated[
    Path | None,
    flag(
        "--config",
        "TOML file with settings: flags without their dashes. Flags and environment win over it.",
        is_eager=True,
        callback=_apply_config_file,
    ),
]
Host = Annotated[str, flag("--host", "Address to bind.")]
Port = Annotated[int, flag("--port", "Port to bind; 0 takes a free one.", min=0, max=65535)]
SslKeyfile = Annotated[
    Path | None, flag("--ssl-keyfile", "Private key, PEM. With --ssl-certfile: TLS.")
]
SslCertfile = Annotated[Path | None, flag("--ssl-certfile", "Certificate chain, PEM.")]
SslCaCerts = Annotated[
    Path | None,
    flag("--ssl-ca-certs", "Authorities of client certificates, PEM; clients must then have one."),
]
ApiKey = Annotated[
    str | None,
    flag("--api-key", "Key that callers must send. Better set through OUTRIDER_API_KEY."),
]
ApiKeysFile = Annotated[
    Path | None,
    flag("--api-keys-file", "More keys: lines NAME KEY, several for a name; read when it changes."),
]
Insecure = Annotated[
    bool,
    flag("--insecure", "Listen to other machines without TLS: all is sent in the clear."),
]
MaxStreamsPerCaller = Annotated[
    int | None,
    flag(
        "--max-streams-per-caller",
        "Streams that one caller may have open; more are refused. Any number by default.",
        min=1,
    ),
]
Grace = Annotated[
    float,
    flag("--grace", "Seconds that running calls may go on after SIGTERM.", min=0),
]
MetricsPort = Annotated[
    int | None,
    flag(
        "--metrics-port", "Port for Prometheus, on the same host; off by default.", min=0, max=65535
    ),
]
HealthPort = Annotated[
    int | None,
    flag(
        "--health-port",
        "Port for health checks alone, without TLS, on the same host: for probes that speak none.",
        min=0,
        max=65535,
    ),
]
OtlpTracesEndpoint = Annotated[
    str | None,
    flag(
        "--otlp-traces-endpoint",
        "Collector that takes OpenTelemetry traces over gRPC, http://HOST:PORT; off by default.",
    ),
]
TraceSampleRatio = Annotated[
    float,
    flag(
        "--trace-sample-ratio",
        "Share of the requests that are traced when their caller does not say.",
        min=0,
        max=1,
    ),
]
Level = Annotated[LogLevel, flag("--log-level", "The least that is logged.")]
Format = Annotated[LogFormat, flag("--log-format", "How log lines look.")]
Threads = Annotated[
    int | None,
    flag(
        "--threads",
        "Threads of a forward on CPU; by default one for each core, of more than two but for one "
        "for each draft service on the same machine.",
        min=1,
    ),
]
KernelsOnCpu = Annotated[
    CpuKernels,
    flag(
        "--cpu-kernels",
        "auto: float32 on the CPU runs on kernels compiled at the first start, if there is a C++ "
        "compiler; on: or the service does not start; off: torch's own.",
    ),
]
QuantizeWeights = Annotated[
    Quantization,
    flag(
        "--quantization",
        "none: weights as loaded; int8: the linear layers' as integers of 8 bits, for float32 on "
        "the CPU kernels alone. A target so quantised is another model, a draft is not.",
    ),
]
CompileModel = Annotated[
    Compile,
    flag(
        "--compile",
        "auto: a model on those kernels is compiled as a whole, once, in a process beside the "
        "service; on a GPU with paged attention, forwards of few rows become CUDA graphs at each "
        "start. on: either before it serves, or it does not start; off: Python runs the model.",
    ),
]
