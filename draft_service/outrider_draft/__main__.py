"""The command `outrider-draft`: turns flags and environment into settings, and serves."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from outrider_runtime import logs, settled_memory
from outrider_runtime.errors import StartupError
from outrider_runtime.logs import LogFormat, LogLevel
from outrider_runtime.metrics import MetricsExporter, new_registry
from outrider_runtime.model.compiled.mode import Compile
from outrider_runtime.model.kernels.mode import CpuKernels, Quantization
from outrider_runtime.passing_thread import passing
from outrider_runtime.prompt_lookup import LookupRule
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
    TraceSampleRatio,
    flag,
    startup_errors,
)
from outrider_runtime.tracing import TracingSettings, open_tracer

from outrider_draft import drafter
from outrider_draft.metrics import DraftMetrics
from outrider_draft.service import DraftingStopped, DraftService
from outrider_draft.settings import (
    DraftMethod,
    DraftSettings,
    LookupSettings,
    ModelSettings,
    ProposerSettings,
    SessionSettings,
    StepSettings,
    SuffixSettings,
)

app = typer.Typer(add_completion=False)

_SESSIONS = SessionSettings()
_STEP = StepSettings()
_LOOKUP = LookupSettings()
_SUFFIX = SuffixSettings()

Model = Annotated[
    str | None, flag("--model", "Draft model: a local folder or a hub id; safetensors only.")
]
TargetTokenizer = Annotated[
    list[str] | None,
    flag(
        "--target-tokenizer",
        "Tokenizer of a target that has another than the draft model: a local folder or a hub id. "
        "Drafts are translated for it. May repeat.",
    ),
]
Method = Annotated[
    DraftMethod | None,
    flag("--method", "What proposes: a draft model, or the text itself. Default: model."),
]
Dtype = Annotated[
    str, flag("--dtype", "auto, float32, bfloat16, float16 or float64: weights and cache.")
]
Device = Annotated[str, flag("--device", "auto, cpu or cuda.")]
Threads = Annotated[int, flag("--threads", "Threads of one forward on the CPU.", min=1)]
MaxNumSeqs = Annotated[int, flag("--max-num-seqs", "Sessions per draft step.", min=1)]
MaxNumBatchedTokens = Annotated[
    int, flag("--max-num-batched-tokens", "Rows per draft step spent on long prompts.", min=1)
]
EnumerationRows = Annotated[
    int,
    flag(
        "--enumeration-rows",
        "Lines per draft step up to which guesses beside the chains are grown.",
        min=1,
    ),
]
MaxSessions = Annotated[
    int, flag("--max-sessions", "Sessions held, of all targets together.", min=1)
]
MaxSessionsPerTarget = Annotated[
    int, flag("--max-sessions-per-target", "Sessions one target may hold.", min=1)
]
MaxModelLen = Annotated[
    int | None,
    flag("--max-model-len", "Longest sequence, in tokens. Default: what the model allows.", min=2),
]
KvCacheTokens = Annotated[
    int, flag("--kv-cache-tokens", "Tokens held in the cache, all sessions together.", min=16)
]
MaxMatchingNgramSize = Annotated[
    int,
    flag(
        "--max-matching-ngram-size",
        "Prompt lookup: longest n-gram to match where a request says nothing.",
        min=1,
    ),
]
Rule = Annotated[
    LookupRule,
    flag("--lookup-rule", "Prompt lookup: continue the latest match, or transformers' first."),
]


def _cache_tokens(value: int) -> int:
    if value and value < MIN_TOKENS:
        raise typer.BadParameter(f"must be 0 or at least {MIN_TOKENS}")
    return value


SuffixCacheTokens = Annotated[
    int,
    flag(
        "--suffix-cache-tokens",
        "Suffix tree: tokens of recent texts to remember, each for its own tenant; 0 is off.",
        callback=_cache_tokens,
    ),
]


@app.command()
def serve(
    *,
    model: Model = None,
    method: Method = None,
    target_tokenizer: TargetTokenizer = None,
    host: Host = "127.0.0.1",
    port: Port = 50052,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
    cpu_kernels: KernelsOnCpu = CpuKernels.AUTO,
    quantization: QuantizeWeights = Quantization.NONE,
    compile: CompileModel = Compile.AUTO,  # noqa: A002 - the flag's name
    max_num_seqs: MaxNumSeqs = _STEP.max_num_seqs,
    max_num_batched_tokens: MaxNumBatchedTokens = _STEP.max_num_batched_tokens,
    enumeration_rows: EnumerationRows = _STEP.enumeration_rows,
    max_sessions: MaxSessions = _SESSIONS.max_sessions,
    max_sessions_per_target: MaxSessionsPerTarget = _SESSIONS.max_sessions_per_target,
    max_model_len: MaxModelLen = None,
    kv_cache_tokens: KvCacheTokens = 65_536,
    max_matching_ngram_size: MaxMatchingNgramSize = _LOOKUP.max_matching_ngram_size,
    lookup_rule: Rule = _LOOKUP.rule,
    suffix_cache_tokens: SuffixCacheTokens = _SUFFIX.cache_tokens,
    ssl_keyfile: SslKeyfile = None,
    ssl_certfile: SslCertfile = None,
    ssl_ca_certs: SslCaCerts = None,
    api_key: ApiKey = None,
    api_keys_file: ApiKeysFile = None,
    insecure: Insecure = False,
    max_streams_per_caller: MaxStreamsPerCaller = None,
    grace: Grace = 30.0,
    metrics_port: MetricsPort = None,
    otlp_traces_endpoint: OtlpTracesEndpoint = None,
    trace_sample_ratio: TraceSampleRatio = 1.0,
    health_port: HealthPort = None,
    log_level: Level = LogLevel.INFO,
    log_format: Format = LogFormat.AUTO,
    config: ConfigFile = None,  # noqa: ARG001  # applied by its callback
) -> None:
    """Propose tokens to target services.

    Give --model for a draft model, or --method prompt-lookup or suffix for none. Every flag has an
    OUTRIDER_* variable: --max-num-seqs is OUTRIDER_MAX_NUM_SEQS.
    """
    proposer: ProposerSettings
    with startup_errors("outrider-draft"):
        if method not in (None, DraftMethod.MODEL) and model is not None:
            raise StartupError(f"--model and --method {method} exclude each other")
        if method not in (None, DraftMethod.MODEL) and target_tokenizer:
            raise StartupError(
                f"--target-tokenizer is for a draft model; {method} copies ids of any kind"
            )
        if method is DraftMethod.SUFFIX:
            proposer = SuffixSettings(cache_tokens=suffix_cache_tokens)
        elif method is DraftMethod.PROMPT_LOOKUP:
            proposer = LookupSettings(
                max_matching_ngram_size=max_matching_ngram_size, rule=lookup_rule
            )
        elif model is None:
            raise StartupError(
                "give --model DIR for a draft model, or --method prompt-lookup or suffix"
            )
        else:
            proposer = ModelSettings(
                model=model,
                dtype=dtype,
                device=device,
                threads=threads,
                cpu_kernels=cpu_kernels,
                quantization=quantization,
                compile=compile,
                max_model_len=max_model_len,
                kv_cache_tokens=kv_cache_tokens,
                target_tokenizers=tuple(target_tokenizer or ()),
            )
        settings = DraftSettings(
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
            sessions=SessionSettings(
                max_sessions=max_sessions,
                max_sessions_per_target=max_sessions_per_target,
                max_length=max_model_len or _SESSIONS.max_length,
            ),
            step=StepSettings(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                enumeration_rows=enumeration_rows,
            ),
            proposer=proposer,
            tracing=TracingSettings(otlp_traces_endpoint, trace_sample_ratio),
            metrics_port=metrics_port,
        )
        logs.configure(log_level, log_format)
        settled_memory.prefer_huge_pages()
        asyncio.run(_serve(settings))


async def _serve(settings: DraftSettings) -> None:
    tracer = open_tracer("outrider-draft", settings.tracing)
    registry = new_registry()
    metrics = DraftMetrics(registry)
    # Nothing else runs on the loop yet: loading may block it.
    loaded = passing(drafter.build, settings.proposer, metrics)
    settled_memory.settle()
    service = DraftService(settings, loaded, metrics, tracer)
    host = settings.server.host
    exporter: MetricsExporter | None = None
    if settings.metrics_port is not None:
        exporter = MetricsExporter(registry, host=host, port=settings.metrics_port)
        exporter.start()
    try:
        port = await service.start()
        print(f"outrider-draft serving on {host}:{port} ({loaded.title})", flush=True)
        await service.serve_until_signalled()
    except DraftingStopped:
        raise typer.Exit(1) from None
    finally:
        if exporter is not None:
            exporter.stop()
        if tracer is not None:
            tracer.close()


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
