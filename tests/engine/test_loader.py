from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine.plain_model import largest_difference, plain_model, random_ids
from engine.tiny_models import MAX_POSITIONS, VOCAB_SIZE, build_tiny
from outrider_contract.generation_config import to_json_dict
from outrider_runtime.errors import StartupError
from outrider_runtime.model import device as device_module
from outrider_runtime.model import model_folder
from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.device import resolve_device, resolve_dtype
from outrider_runtime.model.loader import load
from outrider_runtime.model.ragged_runner import RaggedRunner
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build_tiny("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved_llama: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved_llama, tmp_path / "model"))


def edit_json(file: Path, **changes: object) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


def test_a_loaded_model_gives_the_logits_it_was_saved_with(saved_llama: Path) -> None:
    loaded = load(str(saved_llama), device="cpu")
    runner = RaggedRunner(loaded.model, num_blocks=8, block_size=4)
    text = random_ids(9)
    logits = runner.forward([SequenceRows(runner.pool.create(), text, 9)])
    assert largest_difference(logits, plain_model("llama").logits(text)) < 1e-5


def test_a_loaded_model_tells_what_a_service_needs_to_know(saved_llama: Path) -> None:
    loaded = load(str(saved_llama), device="cpu")
    assert loaded.name == "tiny-llama"
    assert loaded.folder == saved_llama
    assert loaded.architecture == "LlamaForCausalLM"
    assert (loaded.vocab_size, loaded.max_model_len) == (VOCAB_SIZE, MAX_POSITIONS)
    assert loaded.kv_bytes_per_token == 3 * 2 * 16 * 2 * 4
    assert to_json_dict(loaded.generation_config)["eos_token_id"] in (2, [2])


def test_the_position_limit_is_found_under_other_names(tmp_path: Path) -> None:
    build_tiny("gpt2", n_positions=77).save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu").max_model_len == 77


def test_the_models_own_generation_defaults_are_read(folder: Path) -> None:
    edit_json(
        folder / "generation_config.json",
        temperature=0.6,
        do_sample=True,
        eos_token_id=[2, 5],
        some_future_option=1,
    )
    values = to_json_dict(load(str(folder), device="cpu").generation_config)
    assert (values["temperature"], values["do_sample"]) == (0.6, True)
    assert values["eos_token_id"] == [2, 5]


def test_without_generation_defaults_the_special_tokens_come_from_the_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    values = to_json_dict(load(str(folder), device="cpu").generation_config)
    assert values["eos_token_id"] in (2, [2])
    assert "temperature" not in values


def test_negative_special_tokens_mean_that_there_is_none(folder: Path) -> None:
    edit_json(folder / "generation_config.json", pad_token_id=-1)
    assert "pad_token_id" not in to_json_dict(load(str(folder), device="cpu").generation_config)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_the_asked_precision_is_used(saved_llama: Path, name: str) -> None:
    loaded = load(str(saved_llama), dtype=name, device="cpu")
    assert loaded.model.dtype == device_module.DTYPES[name]


def test_experts_run_in_float64_too(tmp_path: Path) -> None:
    build_tiny("mixtral").save_pretrained(tmp_path)
    assert load(str(tmp_path), dtype="float64", device="cpu").model.dtype == torch.float64


def test_sixteen_bit_weights_become_float32_on_the_cpu(tmp_path: Path) -> None:
    build_tiny("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load(str(tmp_path), device="cpu").model.dtype == torch.float32


def test_on_a_gpu_auto_keeps_the_declared_precision() -> None:
    gpu = torch.device("cuda")
    assert resolve_dtype("auto", declared=torch.bfloat16, device=gpu) == torch.bfloat16
    assert resolve_dtype("auto", declared=None, device=gpu) == torch.float32
    assert resolve_dtype("float16", declared=torch.bfloat16, device=gpu) == torch.float16


def test_loading_says_nothing_on_the_terminal_but_its_own_events(
    saved_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load(str(saved_llama), device="cpu")
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "Loading" not in printed.out


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    drop_weights(folder)
    torch.save(build_tiny("llama").state_dict(), folder / "pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "damaged config": (lambda f: (f / "config.json").write_text('{"a'), "config.json cannot be"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json cannot"),
    "empty config": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "list as config": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "unknown type": (change_config(model_type="foo"), "'foo' is not known to transformers"),
    "code in the folder": (
        change_config(model_type="foo", auto_map={"AutoConfig": "x.Y"}),
        "is never run",
    ),
    "not a language model": (change_config(model_type="vit"), "no causal language model"),
    "encoder-decoder": (change_config(model_type="t5"), "encoder-decoder"),
    "impossible config": (change_config(num_attention_heads=5), "multiple of the number"),
    "wrongly typed config": (change_config(hidden_size="x"), "hidden_size"),
    "no weights": (drop_weights, "no weights"),
    "pickled weights": (pickle_weights, "pickled"),
    "cut weights": (cut_weights, "damaged"),
    "no safetensors at all": (
        lambda f: (f / "model.safetensors").write_bytes(b"abc"),
        "damaged",
    ),
    "too few weights": (
        change_config(num_hidden_layers=4, layer_types=None),
        r"lack 9 tensors.*layers\.3",
    ),
    "weights of another shape": (change_config(intermediate_size=32), "shapes"),
    "another vocabulary": (change_config(vocab_size=200), "shapes"),
    "dynamic rotary scaling": (
        change_config(
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        ),
        "rotary scaling",
    ),
    "damaged generation config": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json cannot be read",
    ),
    "list as generation config": (
        lambda f: (f / "generation_config.json").write_text("[]"),
        "not a JSON object",
    ),
    "bad generation config": (
        lambda f: (f / "generation_config.json").write_text('{"temperature": "hot"}'),
        "generation_config.json is not valid: temperature",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_cannot_be_served_is_refused_in_one_clear_line(
    case: str, folder: Path
) -> None:
    damage, reason = BROKEN[case]
    damage(folder)
    with pytest.raises(StartupError, match=reason) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_even_an_error_that_nobody_foresaw_is_one_line(
    saved_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("half\na surprise")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(StartupError, match=r"tiny-llama cannot be loaded: .*half") as caught:
        load(str(saved_llama), device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_beyond_the_config_are_reported(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=2, layer_types=None)
    with capture_logs() as events:
        load(str(folder), device="cpu")
    assert "weights_ignored" in [event["event"] for event in events]


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "a/b/c", "~/x"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(StartupError, match="does not exist"):
        load(path)


def test_an_empty_name_and_a_file_are_not_models(folder: Path) -> None:
    with pytest.raises(StartupError, match="no model given"):
        load("")
    with pytest.raises(StartupError, match="is a file"):
        load(str(folder / "config.json"))


def test_a_hub_id_brings_safetensors_and_no_pickles(
    saved_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(saved_llama)

    monkeypatch.setattr(model_folder, "snapshot_download", download)
    loaded = load("someone/tiny-llama", device="cpu")
    assert loaded.name == "someone/tiny-llama"
    [(name, patterns)] = asked
    assert name == "someone/tiny-llama"
    assert "*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in patterns)


def test_a_hub_that_does_not_answer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(model_folder, "snapshot_download", fail)
    with pytest.raises(StartupError, match="nor available from the hub: no route to host"):
        load("someone/tiny-llama")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu0", ""])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(StartupError, match="unknown device"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(StartupError, match="not available"):
        resolve_device("cuda:1")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"


def test_an_unknown_precision_is_refused(saved_llama: Path) -> None:
    with pytest.raises(StartupError, match="unknown dtype 'int8'"):
        load(str(saved_llama), dtype="int8", device="cpu")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_model_too_large_for_the_memory_is_told_so(
    error: Exception, saved_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(StartupError, match="does not fit into the memory of cpu"):
        load(str(saved_llama), device="cpu")


def test_a_cache_too_large_for_the_memory_is_told_so(saved_llama: Path) -> None:
    model = load(str(saved_llama), device="cpu").model
    with pytest.raises(StartupError, match=r"KV cache of .* tokens .* does not fit"):
        RaggedRunner(model, num_blocks=1 << 50, block_size=16)
