"""Client of the Outrider target service: `Client` for threads, `AsyncClient` for event loops.

Needs gRPC and protobuf, nothing heavier. Everything public is here; modules whose names start with
an underscore are not.
"""

from outrider_client._async_client import AsyncClient
from outrider_client._async_stream import AsyncStream
from outrider_client._client import Client
from outrider_client._completion import (
    BeamProgress,
    Chunk,
    Completion,
    FinishReason,
    GeneratedSequence,
    HealedPrompt,
    Started,
)
from outrider_client._connection import TLSConfig
from outrider_client._errors import (
    AlreadyExistsError,
    AuthenticationError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OutriderError,
    OverloadedError,
    PermissionDeniedError,
    RequestCancelledError,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
)
from outrider_client._explanation import Explanation, Finding
from outrider_client._generation_config import GenerationConfig
from outrider_client._generation_fields import (
    CompileConfig,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from outrider_client._generation_mode import GenerationMode
from outrider_client._info import (
    DraftLink,
    DraftLinkState,
    FieldCapability,
    FieldSupport,
    Loads,
    ModelInfo,
    ServerInfo,
)
from outrider_client._log_probs import Scores, TokenLogProb, TokenLogProbs
from outrider_client._plugins import Plugin, PluginInfo, PluginKind
from outrider_client._speculation_config import SpeculationConfig
from outrider_client._stream import Stream
from outrider_client._structured_output import StructuredOutput
from outrider_client._tensors import Tensor
from outrider_client._usage import DrafterStats, SpeculationRound, SpeculationStats, Usage

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BeamProgress",
    "Chunk",
    "Client",
    "CompileConfig",
    "Completion",
    "DeadlineExceededError",
    "DraftLink",
    "DraftLinkState",
    "DrafterStats",
    "Explanation",
    "FieldCapability",
    "FieldSupport",
    "Finding",
    "FinishReason",
    "GeneratedSequence",
    "GenerationConfig",
    "GenerationMode",
    "HealedPrompt",
    "InvalidRequestError",
    "Loads",
    "ModelInfo",
    "NotFoundError",
    "OutriderError",
    "OverloadedError",
    "PermissionDeniedError",
    "Plugin",
    "PluginInfo",
    "PluginKind",
    "RequestCancelledError",
    "Scores",
    "ServerError",
    "ServerInfo",
    "SpeculationConfig",
    "SpeculationRound",
    "SpeculationStats",
    "Started",
    "Stream",
    "StreamInterruptedError",
    "StructuredOutput",
    "SynthIDTextWatermarkingConfig",
    "TLSConfig",
    "Tensor",
    "TokenLogProb",
    "TokenLogProbs",
    "UnavailableError",
    "Usage",
    "WatermarkingConfig",
]

# Tracebacks and `repr` show the names that one can import.
for _name in __all__:
    globals()[_name].__module__ = __name__
