"""Loads a model through transformers and refuses, in one clear line, whatever cannot be served.

Safetensors only and never code from a repository: loading a model must not run anything. Knows
nothing of requests; leaves a model that the ragged engine has been checked against.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from outrider.v1.generation_config_pb2 import GenerationConfig
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from outrider_runtime.errors import StartupError
from outrider_runtime.model.device import is_out_of_memory, resolve_device, resolve_dtype
from outrider_runtime.model.model_facts import max_model_len, num_output_ids
from outrider_runtime.model.model_folder import (
    generation_defaults,
    one_line,
    read_json,
    require_safetensors,
    resolve_folder,
    to_generation_config,
)
from outrider_runtime.model.rank_group import RankGroup
from outrider_runtime.model.self_check import self_check
from outrider_runtime.model.support import (
    UnsupportedModel,
    check_config,
    check_shareable,
    check_supported,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready for a `RaggedRunner`."""

    model: PreTrainedModel
    config: PretrainedConfig
    name: str
    """The folder's name, or the hub id."""
    folder: Path
    """Where its files are; also those of the tokenizer."""
    architecture: str
    """Class name in transformers, e.g. LlamaForCausalLM."""
    vocab_size: int
    """Columns of the logits."""
    max_model_len: int
    """Positions the model was made for."""
    generation_config: GenerationConfig
    """The model's own defaults; empty if it brings none."""
    kv_bytes_per_token: int
    """Bytes that one position takes in the KV cache, measured."""


def load(
    path_or_hub_id: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    group: RankGroup | None = None,
) -> LoadedModel:
    """Loads a model from a local folder or, if there is no such folder, from the hub.

    Args:
        path_or_hub_id: folder with config.json and safetensors, or e.g. "Qwen/Qwen3-0.6B".
        dtype: auto, float32, bfloat16, float16 or float64; see `device.resolve_dtype`.
        device: auto, cpu, cuda or cuda:N.
        group: processes that share it; each loads its own part, on its own device.

    Raises:
        StartupError: in one line, what is wrong and what to change.
    """
    where = resolve_device(device) if group is None else group.device
    with _quiet(), _startup_errors(path_or_hub_id):
        folder = resolve_folder(path_or_hub_id)
        config = _load_config(folder)
        check_config(config)
        if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UnsupportedModel(config, "transformers has no causal language model for it")
        require_safetensors(folder)
        if group is not None:
            check_shareable(config, group.size)
        generation_config = generation_defaults(folder)
        # A config has what its class thought of, and what its file says.
        precision = resolve_dtype(dtype, declared=getattr(config, "dtype", None), device=where)
        model = _load_weights(folder, dtype=precision, device=where, group=group)
        check_supported(model)
        kv_bytes_per_token = self_check(model)
    if generation_config is None:
        # Made by transformers from what config.json says of special tokens.
        derived = model.generation_config.to_diff_dict()
        generation_config = to_generation_config(derived, source=folder / "config.json")
    local = Path(path_or_hub_id).is_dir()
    loaded = LoadedModel(
        model=model,
        config=model.config,
        name=folder.resolve().name if local else path_or_hub_id,
        folder=folder,
        architecture=type(model).__name__,
        vocab_size=num_output_ids(model),
        max_model_len=max_model_len(model.config),
        generation_config=generation_config,
        kv_bytes_per_token=kv_bytes_per_token,
    )
    _log.info(
        "model_loaded",
        model=loaded.name,
        architecture=loaded.architecture,
        parameters=model.num_parameters(),
        dtype=str(precision).removeprefix("torch."),
        device=str(where),
        max_model_len=loaded.max_model_len,
        kv_bytes_per_token=kv_bytes_per_token,
    )
    return loaded


def _load_config(folder: Path) -> PretrainedConfig:
    file = folder / "config.json"
    if not file.is_file():
        raise StartupError(f"{folder} has no config.json: it is not a transformers model folder")
    values = read_json(file)
    if "model_type" not in values:
        raise StartupError(f"{file} names no model_type")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # classes of configs raise what they like
        if values["model_type"] not in transformers.CONFIG_MAPPING:
            raise StartupError(
                f"model type {values['model_type']!r} is not known to transformers "
                f"{transformers.__version__}, and code from a model's folder is never run"
            ) from error
        raise StartupError(f"{file} is not valid: {one_line(error)}") from error


def _load_weights(
    folder: Path, *, dtype: torch.dtype, device: torch.device, group: RankGroup | None
) -> PreTrainedModel:
    # The fused expert kernels know no float64.
    options: dict[str, Any] = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    if group is not None:
        options["distributed_config"] = DistributedConfig(tp_size=group.size, tp_plan="auto")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        model = model.to(device).eval()
    except SafetensorError as error:
        raise StartupError(f"{folder}: the weights are damaged: {one_line(error)}") from error
    except Exception as error:  # told apart below; what is not known goes on
        if is_out_of_memory(error):
            raise StartupError(
                f"{folder} does not fit into the memory of {device}: "
                "use a smaller model or another --dtype"
            ) from error
        if "ignore_mismatched_sizes" in str(error):
            raise StartupError(
                f"{folder}: the weights do not have the shapes that config.json asks for"
            ) from error
        raise
    # Transformers fills in what is missing with random numbers and only logs it.
    if missing := sorted(report["missing_keys"]):
        raise StartupError(
            f"{folder}: the weights lack {len(missing)} tensors that config.json asks for, "
            f"e.g. {missing[0]}"
        )
    if unexpected := sorted(report["unexpected_keys"]):
        _log.warning("weights_ignored", count=len(unexpected), example=unexpected[0])
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and load reports off the terminal; errors still raise."""
    log = transformers.logging
    verbosity, progress = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if progress:
            log.enable_progress_bar()


@contextmanager
def _startup_errors(path_or_hub_id: str) -> Iterator[None]:
    """Gives what nobody foresaw (configs hold anything) the form that a service can print."""
    try:
        yield
    except StartupError:
        raise
    except Exception as error:
        raise StartupError(f"{path_or_hub_id} cannot be loaded: {one_line(error)}") from error
