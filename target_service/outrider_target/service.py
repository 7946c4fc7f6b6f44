"""Builds a target service from its settings, runs it, and takes it down."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc
import structlog
from outrider.v1 import draft_pb2, generation_pb2_grpc
from outrider_runtime import settled_memory
from outrider_runtime.certificates import ChannelCertificates
from outrider_runtime.draft_protocol import PROTOCOL_VERSION
from outrider_runtime.errors import StartupError
from outrider_runtime.interceptors import CallEnd
from outrider_runtime.listening import check_address, join_address
from outrider_runtime.loop_calls import LoopCalls
from outrider_runtime.metrics import CallMetrics, MetricsExporter, new_registry
from outrider_runtime.model.loader import LoadedModel
from outrider_runtime.model.rank_group import RankGroup, RanksLost
from outrider_runtime.model.runner import Runner
from outrider_runtime.passing_thread import passing
from outrider_runtime.recent_texts import RecentTexts
from outrider_runtime.server import GrpcServer, run_until_signalled
from outrider_runtime.tokenizer import fingerprint, load_tokenizer
from outrider_runtime.tracing import Tracer
from prometheus_client import CollectorRegistry

from outrider_target.constraints.grammar import GrammarCompiler
from outrider_target.decoding.healing import Healer
from outrider_target.drafting.combined import CombinedDrafter
from outrider_target.drafting.drafter import NullDrafter
from outrider_target.drafting.lookup import LookupDrafter
from outrider_target.drafting.prediction import PredictionDrafter
from outrider_target.drafting.pricing.control import Control
from outrider_target.drafting.pricing.step_costs import RowCurve
from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.link import DraftLink
from outrider_target.drafting.remote.link_key import LinkKey
from outrider_target.drafting.remote.links import Connect, DraftLinks
from outrider_target.drafting.remote.patience import RoundPace
from outrider_target.drafting.suffix import SuffixDrafter
from outrider_target.engine.admission import LiveRequests
from outrider_target.engine.forward_times import time_forwards
from outrider_target.engine.loaded_runner import load_model, make_runner
from outrider_target.engine.outbox import Outbox
from outrider_target.engine.round import Rounds
from outrider_target.engine.scheduler import Scheduler
from outrider_target.engine.thread import Engine
from outrider_target.engine.token_quotas import TokenQuotas
from outrider_target.plugins import PluginRegistry, load_plugins
from outrider_target.requests.model_defaults import servable_defaults
from outrider_target.requests.request import DraftMethod
from outrider_target.requests.room import Room
from outrider_target.requests.tensor_rules import TensorSizes
from outrider_target.requests.validation import ServedModel
from outrider_target.serving.caller_metrics import CallerMetrics
from outrider_target.serving.canary import Canary
from outrider_target.serving.comparison import TOLERANCES
from outrider_target.serving.metrics import Capacity, RequestMetrics
from outrider_target.serving.metrics_page import export
from outrider_target.serving.servicer import GenerationServicer
from outrider_target.serving.serving import ModelIdentity, Serving
from outrider_target.serving.text import TextCodec
from outrider_target.settings import TargetSettings

log = structlog.get_logger()

SERVICE_NAME = "outrider.v1.GenerationService"

_STOP_SECONDS = 10.0


@dataclass(slots=True)
class TargetService:
    """A target service: `start` it, then `run` it or `stop` it. Lives on one event loop."""

    settings: TargetSettings
    tracer: Tracer | None = None
    """Records calls; belongs to whoever made it. None: nothing is recorded."""
    group: RankGroup | None = None
    """The processes that share the model, led by this one; None: it has all of it."""
    port: int = 0
    """The bound port, once started."""
    metrics_port: int | None = None
    """The bound port of the metrics page, once started and if there is one."""
    serving: Serving | None = None
    _server: GrpcServer | None = None
    _resources: AsyncExitStack = field(default_factory=AsyncExitStack)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None
    _death: BaseException | None = None

    async def start(self) -> None:
        """Load the model and listen.

        Raises:
            StartupError: One clear line says why not.
        """
        try:
            await self._start()
        except BaseException as fault:  # cancelled, too: what was opened is closed
            await self._resources.aclose()
            if isinstance(fault, RanksLost):
                raise StartupError(str(fault)) from fault
            raise

    async def run(self, announce: Callable[[str], None]) -> None:
        """Serve until a signal comes.

        Args:
            announce: Takes the one line that says that the service is up.

        Raises:
            StartupError: The engine died; the process should end with an error.
        """
        assert self._server is not None
        assert self.serving is not None
        address = join_address(self.settings.server.host, self.port)
        announce(f"outrider-target serving {self.serving.identity.name} on {address}")
        try:
            await run_until_signalled(
                self._server, drain=self.serving.requests.drain, stopping=self._stopping
            )
        finally:
            await self._resources.aclose()
        if self._death is not None:
            raise StartupError(f"the engine died: {self._death!r}; the log has the traceback")

    async def stop(self, *, grace: float = 0.0) -> None:
        """Take the service down."""
        if self._server is not None:
            await self._server.stop(grace)
        await self._resources.aclose()

    async def _start(self) -> None:
        settings = self.settings
        self._loop = asyncio.get_running_loop()
        check_address(settings.server.host, settings.server.port)  # before minutes of loading
        plugins = await asyncio.to_thread(load_plugins, settings.plugins)
        loaded = await asyncio.to_thread(passing, load_model, settings, self.group)
        text = TextCodec(await asyncio.to_thread(load_tokenizer, loaded.folder))
        registry = new_registry()
        callers = CallerMetrics(registry) if settings.metrics_by_caller else None
        self.serving = self._assemble(loaded, text, plugins, registry, callers)
        calls = CallMetrics(registry)

        def observe(end: CallEnd) -> None:
            calls.observe(end)
            if callers is not None:
                callers.observe(end)

        self._server = GrpcServer(
            settings.server,
            services=[(SERVICE_NAME, self._register)],
            observe=observe,
            tracer=self.tracer,
        )
        # Taken down in reverse: first the port, then the links, the engine, the other ranks last.
        if self.group is not None:
            self.group.lead(self._on_death)
            self._resources.push_async_callback(asyncio.to_thread, self.group.close)
        self.serving.engine.start()
        self._resources.push_async_callback(
            asyncio.to_thread, self.serving.engine.stop, _STOP_SECONDS
        )
        self.serving.canary.start()
        self._resources.push_async_callback(self.serving.canary.stop)
        self.serving.links.start(self.serving.engine.report_link)
        self._resources.push_async_callback(self.serving.links.stop)
        if settings.metrics_port is not None:
            exporter = MetricsExporter(
                registry, host=settings.server.host, port=settings.metrics_port
            )
            self.metrics_port = exporter.start()
            self._resources.callback(exporter.stop)
            log.info("metrics_served", host=settings.server.host, port=self.metrics_port)
        self.port = await self._server.start()
        self._server.set_serving(True)

    def _register(self, server: grpc.aio.Server) -> None:
        assert self.serving is not None
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(
            GenerationServicer(self.serving), server
        )

    def _assemble(
        self,
        loaded: LoadedModel,
        text: TextCodec,
        plugins: PluginRegistry,
        registry: CollectorRegistry,
        callers: CallerMetrics | None,
    ) -> Serving:
        settings = self.settings
        runner, max_model_len = passing(make_runner, loaded, settings, self.group)
        settled_memory.settle()
        texts = RecentTexts(settings.suffix_cache_tokens)
        round_pace = RoundPace()
        control = Control(
            RowCurve(passing(time_forwards, runner)),
            plain_share=settings.speculation.speedup_probe_rate,
        )
        scheduler = Scheduler(
            runner.pool,
            round_pace,
            max_num_seqs=settings.batch.max_num_seqs,
            max_batched_tokens=settings.batch.max_num_batched_tokens,
            control=control,
            prefix_caching=settings.batch.prefix_caching,
        )
        print_of_tokenizer = fingerprint(text.tokenizer) if text.tokenizer else ""
        calls = LoopCalls(asyncio.get_running_loop())
        self._resources.callback(calls.close)
        fleet = DraftFleet(vocab_size=loaded.vocab_size, round_pace=round_pace, control=control)
        links = DraftLinks(
            settings.drafts,
            _connector(settings, loaded, calls, tokenizer_fingerprint=print_of_tokenizer),
        )
        quotas = TokenQuotas(settings.batch.max_tokens_per_minute_per_caller)
        requests = LiveRequests(
            max_requests=settings.batch.max_num_seqs + settings.batch.max_waiting_requests,
            quotas=quotas,
        )
        outbox = Outbox(calls, requests)
        rounds = Rounds(
            runner,
            scheduler,
            {
                DraftMethod.NONE: NullDrafter(),
                DraftMethod.GRAMMAR: NullDrafter(),
                DraftMethod.REMOTE: fleet,
                DraftMethod.PROMPT_LOOKUP: LookupDrafter(),
                DraftMethod.SUFFIX: SuffixDrafter(texts),
                DraftMethod.PREDICTION: PredictionDrafter(),
                DraftMethod.COMBINED: CombinedDrafter(fleet, texts),
            },
            outbox.put,
            round_pace,
            control,
            steps_seconds=settings.batch.plain_steps_ms / 1000,
        )
        engine = Engine(
            rounds,
            scheduler,
            fleet,
            flush=outbox.flush,
            in_spare_time=texts.digest_some,
            on_death=self._on_death,
        )
        identity = ModelIdentity(
            name=settings.model.served_model_name or loaded.name,
            architecture=loaded.architecture,
            dtype=runner.weight_format,
            device=loaded.model.device.type,
            fingerprint=print_of_tokenizer,
        )
        export(
            registry,
            engine=engine,
            fleet=fleet,
            links=links,
            texts=texts,
            capacity=Capacity(
                settings.batch.max_num_seqs,
                settings.batch.max_waiting_requests,
                runner.pool.num_blocks,
                settings.model.block_size,
            ),
            identity=identity,
        )
        return Serving(
            engine=engine,
            requests=requests,
            quotas=quotas,
            text=text,
            grammars=GrammarCompiler(text.tokenizer, vocab_size=loaded.vocab_size),
            healer=Healer(text.tokenizer, vocab_size=loaded.vocab_size) if text.tokenizer else None,
            model=_served_model(loaded, settings, max_model_len, text, runner),
            plugins=plugins,
            identity=identity,
            batch=settings.batch,
            speculation_defaults=dataclasses.replace(
                settings.speculation, draft_method=settings.default_draft_method
            ),
            fleet=fleet,
            links=links,
            num_blocks=runner.pool.num_blocks,
            block_size=settings.model.block_size,
            metrics=RequestMetrics(registry, callers),
            canary=Canary(
                engine,
                requests,
                text.tokenizer,
                registry,
                rate=settings.canary_rate,
                tolerance=TOLERANCES.get(
                    str(runner.dtype).removeprefix("torch."), TOLERANCES["bfloat16"]
                ),
                max_num_seqs=settings.batch.max_num_seqs,
            ),
        )

    def _on_death(self, fault: BaseException) -> None:
        """The engine thread is gone: nothing can be served any more. Called in that thread."""
        self._death = fault
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop_serving)

    def _stop_serving(self) -> None:
        if self._server is not None:
            self._server.set_serving(False)
        if self.serving is not None and self._death is not None:
            self.serving.requests.fail_all(self._death)
        self._stopping.set()


def _served_model(
    loaded: LoadedModel,
    settings: TargetSettings,
    max_model_len: int,
    text: TextCodec,
    runner: Runner,
) -> ServedModel:
    served, dropped = servable_defaults(loaded.generation_config, vocab_size=loaded.vocab_size)
    if dropped:
        log.warning("model_defaults_dropped", fields=dropped, file="generation_config.json")
    return ServedModel(
        vocab_size=loaded.vocab_size,
        max_model_len=max_model_len,
        room=Room(settings.batch.max_num_seqs, runner.pool.num_blocks, runner.pool.block_size),
        has_tokenizer=text.tokenizer is not None,
        generation_config=served,
        tensors=TensorSizes(
            vocab_size=loaded.vocab_size,
            layers=runner.layers,
            element_size=runner.dtype.itemsize,
            max_bytes=settings.batch.max_tensor_bytes,
        ),
    )


def _connector(
    settings: TargetSettings, loaded: LoadedModel, calls: LoopCalls, *, tokenizer_fingerprint: str
) -> Connect:
    """What makes a link to a draft service."""
    certificates = _draft_certificates(settings)
    key = LinkKey(settings.draft_api_key, settings.draft_api_key_file)
    hello = draft_pb2.Hello(
        protocol_version=PROTOCOL_VERSION,
        tokenizer_fingerprint=tokenizer_fingerprint,
        model_id=loaded.name,
        vocab_size=loaded.vocab_size,
    )

    def connect(address: str, name: str | None) -> DraftLink:
        return DraftLink(
            address, hello, calls, certificates=certificates, certified_name=name, key=key
        )

    return connect


def _draft_certificates(settings: TargetSettings) -> ChannelCertificates | None:
    key, certificate = settings.draft_ssl_keyfile, settings.draft_ssl_certfile
    if settings.draft_ca_certs is None:
        if key is not None or certificate is not None:
            raise StartupError("--draft-ssl-keyfile and --draft-ssl-certfile need --draft-ca-certs")
        return None
    return ChannelCertificates(settings.draft_ca_certs, key, certificate)
