"""Which peers there are, what each needs, and the settings of each that are tried."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.peers.engine import Setting


class EngineEntry(NamedTuple):
    """Where a peer's engine is, and what must be installed for it."""

    entry: str
    """`module:class`."""
    packages: Sequence[str]


class PeerEntry(NamedTuple):
    """One way to run a peer."""

    name: str
    engine: str
    settings: Sequence[Setting]
    """The fastest of them is the one that is measured."""
    samples: bool = True
    batches: bool = True
    """Whether it runs streams at the same time."""
    shares_process: bool = True
    """Whether it runs beside the engine's other ways on one model."""


ENGINES: Mapping[str, EngineEntry] = {
    "transformers": EngineEntry(
        "benchmarks.peers.transformers_generate:TransformersGenerate", ("transformers",)
    ),
    "transformers batching": EngineEntry(
        "benchmarks.peers.transformers_batching:TransformersBatching", ("transformers", "psutil")
    ),
    "openvino": EngineEntry(
        "benchmarks.peers.openvino:OpenVino", ("openvino", "openvino_genai", "gguf")
    ),
    "onnxruntime": EngineEntry(
        "benchmarks.peers.onnxruntime:OnnxRuntime", ("onnxruntime_genai", "onnx", "onnx_ir")
    ),
    "llama.cpp": EngineEntry("benchmarks.peers.llama_cpp:LlamaCpp", ("llama_cpp", "gguf")),
}

_THREADS = range(1, (os.cpu_count() or 1) + 1)
_ASSISTANTS: Sequence[Setting] = (
    {
        "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.4,
    },
    {
        "num_assistant_tokens": 5,
        "num_assistant_tokens_schedule": "heuristic",
        "assistant_confidence_threshold": 0.4,
    },
    {
        "num_assistant_tokens": 4,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    },
)


def _openvino(precision: str) -> Sequence[PeerEntry]:
    """Its ways, computing in float32, as most others do, or in bfloat16, its default."""
    name = f"OpenVINO GenAI {precision}"
    plain = {"mode": "plain", "precision": precision}
    draft = [
        {"mode": "draft", "precision": precision, "num_assistant_tokens": k} for k in (2, 4, 6)
    ]
    lookup = {"mode": "lookup", "precision": precision, "max_ngram_size": 3}
    lookups = [{**lookup, "num_assistant_tokens": k} for k in (3, 6)]
    return (
        PeerEntry(name, "openvino", [plain], shares_process=False),
        PeerEntry(f"{name}, draft model", "openvino", draft, shares_process=False),
        PeerEntry(f"{name}, prompt lookup", "openvino", lookups, shares_process=False),
    )


PEERS: Sequence[PeerEntry] = (
    PeerEntry(
        "transformers plain", "transformers", [{"mode": "plain", "threads": n} for n in _THREADS]
    ),
    PeerEntry(
        "transformers assisted",
        "transformers",
        [{"mode": "assisted", "threads": n, "assistant": a} for a in _ASSISTANTS for n in _THREADS],
        batches=False,
    ),
    PeerEntry(
        "transformers prompt lookup",
        "transformers",
        [{"mode": "lookup", "threads": n, "num_tokens": k} for k in (4, 10) for n in _THREADS],
        batches=False,
    ),
    PeerEntry(
        "transformers continuous batching",
        "transformers batching",
        [{"threads": n} for n in _THREADS],
    ),
    *_openvino("f32"),
    *_openvino("bf16"),
    PeerEntry("ONNX Runtime GenAI", "onnxruntime", [{"mode": "plain"}]),
    PeerEntry(
        "ONNX Runtime GenAI, n-gram",
        "onnxruntime",
        [{"mode": "n-gram", "ngram_size": 3, "max_draft_tokens": k} for k in (3, 6)],
        samples=False,
        batches=False,
    ),
    PeerEntry("llama.cpp f16", "llama.cpp", [{"num_pred_tokens": 0}], batches=False),
    PeerEntry(
        "llama.cpp f16, prompt lookup",
        "llama.cpp",
        [{"num_pred_tokens": k} for k in (3, 8)],
        batches=False,
        shares_process=False,
    ),
)

ONE_AT_A_TIME = frozenset(peer.name for peer in PEERS if not peer.batches)


def missing(engine: str) -> str | None:
    """Why a peer cannot take part; None where all it needs is installed."""
    absent = [name for name in ENGINES[engine].packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
