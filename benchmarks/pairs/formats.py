"""`python -m benchmarks.pairs.formats FORMAT MODEL FOLDER`: a checkpoint as a peer loads it.

In a process of its own, so that what converting takes is not counted as the peer's memory.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.pairs.cache import cached


def converted(kind: str, model: Path) -> Path:
    """The folder that holds the model in a format: "gguf", "openvino" or "onnx".

    Raises:
        subprocess.CalledProcessError: It cannot be converted; what was said went to stderr.
    """

    def convert(folder: Path) -> None:
        command = [sys.executable, "-m", __name__, kind, str(model), str(folder)]
        subprocess.run(command, check=True, stdout=sys.stderr)

    return cached([kind], model, convert)


def _gguf(model: Path, folder: Path) -> None:
    from benchmarks.pairs.gguf_export import export_gguf

    export_gguf(model, folder / "model.gguf", half=True)


def _openvino(model: Path, folder: Path) -> None:
    """By way of GGUF, of which OpenVINO GenAI reads float16 but not float32."""
    import openvino_genai

    source = folder / "model.gguf"
    _gguf(model, folder)
    openvino_genai.LLMPipeline(str(source), "CPU", enable_save_ov_model=True)
    source.unlink()


def _onnx(model: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", model.name]
    command += ["-i", str(model), "-o", str(folder), "-p", "fp32", "-e", "cpu"]
    subprocess.run([*command, "-c", str(folder / "cache")], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    _, chosen, source, destination = sys.argv
    {"gguf": _gguf, "openvino": _openvino, "onnx": _onnx}[chosen](Path(source), Path(destination))
