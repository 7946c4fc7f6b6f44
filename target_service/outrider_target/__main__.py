"""The command `outrider-target`: flags into settings, settings into a running service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from outrider_runtime import logs, settled_memory
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.recent_texts import MIN_TOKENS
from outrider_runtime.server import ServerSettings
from outrider_runtime.settings import (
    ApiKey,
    ApiKeysFile,
    CompileModel,
    ConfigFile,
    Format,
    Grace,
    HealthPort,
    Host,
    Insecure,
    KernelsOnCpu,
    Level,
    MaxStreamsPerCaller,
    MetricsPort,
    OtlpTracesEndpoint,
    Port,
    QuantizeWeights,
    SslCaCerts,
    SslCertfile,
    SslKeyfile,
    Threads,
    TraceSampleRatio,
    flag,
    startup_errors,
)
from outrider_runtime.tracing import TracingSettings, open_tracer

from outrider_target.drafting.remote.links import NAME_PREFIX
from outrider_target.drafting.window import SCHEDULES
from outrider_target.requests.request import DraftMethod
from outrider_target.settings import (
    SUFFIX_CACHE_TOKENS,
    BatchSettings,
    ModelSettings,
    SpeculationDefaults,
    TargetSettings,
)

if TYPE_CHECKING:
    from outrider_runtime.model.rank_group import RankGroup

_BATCH = BatchSettings()
_SPECULATION = SpeculationDefaults()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _schedule(value: str) -> str:
    if value not in SCHEDULES:
        raise typer.BadParameter(f"must be one of {', '.join(SCHEDULES)}")
    return value


def _drafts(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        host, _, port = value.removeprefix(NAME_PREFIX).rpartition(":")
        if not host or not port.isdecimal():
            raise typer.BadParameter(f"{value!r} is not HOST:PORT or {NAME_PREFIX}NAME:PORT")
    return values


def _draft_method(value: DraftMethod | None) -> DraftMethod | None:
    if value is DraftMethod.EARLY_EXIT:
        raise typer.BadParameter("early-exit is for requests: they say after which layer")
    if value is DraftMethod.PREDICTION:
        raise typer.BadParameter("prediction is for requests: they say what they expect")
    return value


def _suffix_cache_tokens(value: int) -> int:
    if value and value < MIN_TOKENS:
        raise typer.BadParameter(f"must be 0 or at least {MIN_TOKENS}")
    return value


@app.command()
def serve(
    model: Annotated[str, flag("--model", "The target model: a local folder, or a hub id.")],
    draft: Annotated[
        list[str] | None,
        flag(
            "--draft",
            "Draft service, HOST:PORT, or dns:///NAME:PORT for all behind a name. May repeat.",
            callback=_drafts,
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 50051,
    served_model_name: Annotated[
        str | None, flag("--served-model-name", "Name shown to clients; default: the folder's.")
    ] = None,
    dtype: Annotated[str, flag("--dtype", "auto, float32, bfloat16, float16 or float64.")] = "auto",
    device: Annotated[str, flag("--device", "auto, cpu, cuda or cuda:N.")] = "auto",
    tensor_parallel_size: Annotated[
        int,
        flag(
            "--tensor-parallel-size",
            "Processes that share the model, each on its own GPU; as many as torchrun starts.",
            min=1,
        ),
    ] = 1,
    threads: Threads = None,
    cpu_kernels: KernelsOnCpu = CpuKernels.AUTO,
    quantization: QuantizeWeights = Quantization.NONE,
    compile: CompileModel = Compile.AUTO,  # noqa: A002 - the flag's name
    max_model_len: Annotated[
        int | None,
        flag("--max-model-len", "Longest prompt plus output; default: the model's.", min=2),
    ] = None,
    max_num_seqs: Annotated[
        int, flag("--max-num-seqs", "Sequences in the running batch.", min=1)
    ] = _BATCH.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int,
        flag("--max-num-batched-tokens", "Rows of one forward; longer prompts are cut.", min=1),
    ] = _BATCH.max_num_batched_tokens,
    plain_steps_ms: Annotated[
        float,
        flag(
            "--plain-steps-ms",
            "Milliseconds of plain decoding in one go, where a step takes less.",
            min=0,
            max=1000,
        ),
    ] = _BATCH.plain_steps_ms,
    max_waiting_requests: Annotated[
        int, flag("--max-waiting-requests", "Requests that may wait; more are refused.", min=0)
    ] = _BATCH.max_waiting_requests,
    max_tokens_per_minute_per_caller: Annotated[
        int | None,
        flag(
            "--max-tokens-per-minute-per-caller",
            "Tokens of prompts and answers that a caller may have; any number by default.",
            min=1,
        ),
    ] = None,
    prefix_caching: Annotated[
        bool,
        flag(
            "--prefix-caching/--no-prefix-caching",
            "Requests of a caller share keys and values of a beginning they have in common.",
        ),
    ] = _BATCH.prefix_caching,
    max_tensor_bytes: Annotated[
        int,
        flag("--max-tensor-bytes", "Bytes of tensors that a request may ask for.", min=0),
    ] = _BATCH.max_tensor_bytes,
    kv_cache_tokens: Annotated[
        int | None, flag("--kv-cache-tokens", "Size of the KV cache in tokens.", min=1)
    ] = None,
    kv_cache_bytes: Annotated[
        int | None, flag("--kv-cache-bytes", "Size of the KV cache in bytes instead.", min=1)
    ] = None,
    block_size: Annotated[
        int, flag("--block-size", "Tokens per block of the KV cache.", min=1)
    ] = 16,
    draft_method: Annotated[
        DraftMethod | None,
        flag(
            "--draft-method",
            "Who drafts, when nobody says; default: combined with --draft.",
            callback=_draft_method,
        ),
    ] = None,
    num_assistant_tokens: Annotated[
        int,
        flag("--num-assistant-tokens", "Window of the first round, when nobody says.", min=1),
    ] = _SPECULATION.num_assistant_tokens,
    num_assistant_tokens_schedule: Annotated[
        str,
        flag(
            "--num-assistant-tokens-schedule",
            "constant, heuristic, heuristic_transient or auto, when nobody says.",
            callback=_schedule,
        ),
    ] = _SPECULATION.num_assistant_tokens_schedule,
    assistant_confidence_threshold: Annotated[
        float,
        flag(
            "--assistant-confidence-threshold",
            "Draft probability below which a draft ends, when nobody says; 0 is off.",
            min=0,
            max=1,
        ),
    ] = _SPECULATION.assistant_confidence_threshold,
    max_assistant_tokens: Annotated[
        int,
        flag("--max-assistant-tokens", "Upper bound of the window.", min=1, max=64),
    ] = _SPECULATION.max_assistant_tokens,
    run_ahead: Annotated[
        int,
        flag("--run-ahead", "Tokens drafted beyond the window meanwhile.", min=0, max=64),
    ] = _SPECULATION.run_ahead,
    draft_fan_out: Annotated[
        int,
        flag(
            "--draft-fan-out",
            "Guesses for each position of a draft that are continued meanwhile.",
            min=1,
            max=16,
        ),
    ] = _SPECULATION.draft_fan_out,
    speedup_probe_rate: Annotated[
        float,
        flag(
            "--speedup-probe-rate",
            "Share of rounds that run plainly to measure what drafting gains.",
            min=0,
            max=0.5,
        ),
    ] = _SPECULATION.speedup_probe_rate,
    draft_tree_rows: Annotated[
        int,
        flag(
            "--draft-tree-rows",
            "Rows of a round for verifying guesses beside the draft.",
            min=0,
            max=64,
        ),
    ] = _SPECULATION.draft_tree_rows,
    draft_timeout_ms: Annotated[
        int,
        flag("--draft-timeout-ms", "Longest wait for a drafter in a round.", min=0, max=60_000),
    ] = _SPECULATION.draft_timeout_ms,
    suffix_cache_tokens: Annotated[
        int,
        flag(
            "--suffix-cache-tokens",
            "Tokens of recent outputs to draft from, each for its own tenant; 0 is off.",
            callback=_suffix_cache_tokens,
        ),
    ] = SUFFIX_CACHE_TOKENS,
    canary_rate: Annotated[
        float,
        flag(
            "--canary-rate",
            "Share of finished requests that are decoded again plainly and compared; 0 is off.",
            min=0,
            max=1,
        ),
    ] = 0.0,
    draft_ca_certs: Annotated[
        Path | None,
        flag("--draft-ca-certs", "Authorities of the drafters' certificates, PEM; then TLS."),
    ] = None,
    draft_ssl_keyfile: Annotated[
        Path | None,
        flag("--draft-ssl-keyfile", "Private key for drafters that ask for a certificate, PEM."),
    ] = None,
    draft_ssl_certfile: Annotated[
        Path | None, flag("--draft-ssl-certfile", "Certificate chain for those drafters, PEM.")
    ] = None,
    draft_api_key: Annotated[
        str | None, flag("--draft-api-key", "Key that the draft services ask for.")
    ] = None,
    draft_api_key_file: Annotated[
        Path | None,
        flag("--draft-api-key-file", "File with that key instead; read when it changes."),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        flag("--plugin", "Name of an installed plug-in that requests may use. May repeat."),
    ] = None,
    ssl_keyfile: SslKeyfile = None,
    ssl_certfile: SslCertfile = None,
    ssl_ca_certs: SslCaCerts = None,
    api_key: ApiKey = None,
    api_keys_file: ApiKeysFile = None,
    insecure: Insecure = False,
    max_streams_per_caller: MaxStreamsPerCaller = None,
    grace: Grace = 30,
    metrics_port: MetricsPort = None,
    metrics_by_caller: Annotated[
        bool,
        flag(
            "--metrics-by-caller/--no-metrics-by-caller",
            "Count requests and tokens by the caller's name (of the key or certificate) as well.",
        ),
    ] = False,
    otlp_traces_endpoint: OtlpTracesEndpoint = None,
    trace_sample_ratio: TraceSampleRatio = 1.0,
    health_port: HealthPort = None,
    log_level: Level = logs.LogLevel.INFO,
    log_format: Format = logs.LogFormat.AUTO,
    config: ConfigFile = None,  # noqa: ARG001 - its callback applies it
) -> None:
    """Serve a target model over gRPC, fed by draft services, if there are any."""
    logs.configure(log_level, log_format)
    settled_memory.prefer_huge_pages()
    settings = TargetSettings(
        model=ModelSettings(
            model=model,
            served_model_name=served_model_name,
            dtype=dtype,
            device=device,
            tensor_parallel_size=tensor_parallel_size,
            threads=threads,
            cpu_kernels=cpu_kernels,
            quantization=quantization,
            compile=compile,
            max_model_len=max_model_len,
            block_size=block_size,
            kv_cache_tokens=kv_cache_tokens,
            kv_cache_bytes=kv_cache_bytes,
        ),
        server=ServerSettings(
            host=host,
            port=port,
            ssl_keyfile=ssl_keyfile,
            ssl_certfile=ssl_certfile,
            ssl_ca_certs=ssl_ca_certs,
            api_key=api_key,
            api_keys_file=api_keys_file,
            insecure=insecure,
            max_streams_per_caller=max_streams_per_caller,
            grace_seconds=grace,
            health_port=health_port,
        ),
        batch=BatchSettings(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            plain_steps_ms=plain_steps_ms,
            max_waiting_requests=max_waiting_requests,
            max_tokens_per_minute_per_caller=max_tokens_per_minute_per_caller,
            prefix_caching=prefix_caching,
            max_tensor_bytes=max_tensor_bytes,
        ),
        speculation=SpeculationDefaults(
            draft_method=draft_method,
            num_assistant_tokens=num_assistant_tokens,
            num_assistant_tokens_schedule=num_assistant_tokens_schedule,
            assistant_confidence_threshold=assistant_confidence_threshold,
            max_assistant_tokens=max_assistant_tokens,
            run_ahead=run_ahead,
            draft_fan_out=draft_fan_out,
            speedup_probe_rate=speedup_probe_rate,
            draft_tree_rows=draft_tree_rows,
            draft_timeout_ms=draft_timeout_ms,
        ),
        drafts=tuple(draft or ()),
        draft_ca_certs=draft_ca_certs,
        draft_ssl_keyfile=draft_ssl_keyfile,
        draft_ssl_certfile=draft_ssl_certfile,
        draft_api_key=draft_api_key,
        draft_api_key_file=draft_api_key_file,
        suffix_cache_tokens=suffix_cache_tokens,
        canary_rate=canary_rate,
        plugins=tuple(plugin or ()),
        tracing=TracingSettings(otlp_traces_endpoint, trace_sample_ratio),
        metrics_port=metrics_port,
        metrics_by_caller=metrics_by_caller,
    )
    with startup_errors("outrider-target"):
        _run(settings)


def _run(settings: TargetSettings) -> None:
    # Imported late: `--help` and mistaken flags should not wait for torch.
    from outrider_runtime.model.rank_group import join

    from outrider_target.engine.loaded_runner import follow

    group = join(settings.model.tensor_parallel_size, device=settings.model.device)
    if group is None or group.leads:
        asyncio.run(_serve(settings, group))
    else:
        follow(settings, group)


async def _serve(settings: TargetSettings, group: RankGroup | None) -> None:
    from outrider_target.service import TargetService

    tracer = open_tracer("outrider-target", settings.tracing)
    try:
        service = TargetService(settings, tracer, group)
        await service.start()
        await service.run(announce=lambda line: print(line, flush=True))
    finally:
        if tracer is not None:
            tracer.close()


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
