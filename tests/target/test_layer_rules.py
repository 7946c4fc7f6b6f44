"""What a request may ask of a model's layers, whatever their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_client._tensor_assembly import TensorParts
from outrider_contract.generation_config import from_json_dict
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.model.runner import LayerShapes
from outrider_target.__main__ import app
from outrider_target.decoding.tensors import TokenTensor
from outrider_target.requests.contrastive_rules import contrastive_settings
from outrider_target.requests.dola_rules import premature_layers
from outrider_target.requests.request import ContrastiveSettings, TensorKind
from outrider_target.requests.room import Room
from outrider_target.requests.tensor_rules import TensorSizes, tensor_wishes
from outrider_target.serving.messages import tensor_chunks
from typer.testing import CliRunner


def layers(count: int, *, tied: bool = False, heads: tuple[int, ...] = (4, 4)) -> LayerShapes:
    return LayerShapes(count, 64, heads, tied)


@pytest.mark.parametrize(
    ("count", "tied", "mode", "chosen"),
    [
        (1, False, "low", [0]),
        (2, False, "low", [0]),
        (2, True, "low", [1]),
        (4, True, "low", [2]),
        (12, False, "low", [0, 2, 4]),
        (12, True, "low", [2, 4]),
        (12, True, "high", [6, 8, 10]),
        (3, False, "high", [1]),
        (40, False, "high", list(range(20, 40, 2))),
        (48, False, "low", list(range(0, 20, 2))),
        (48, True, "low", list(range(2, 20, 2))),
        (48, False, "high", list(range(28, 48, 2))),
    ],
)
def test_dola_takes_the_layers_that_transformers_takes(
    count: int, tied: bool, mode: str, chosen: list[int]
) -> None:
    config = from_json_dict({"dola_layers": mode})
    assert list(premature_layers(config, layers(count, tied=tied))) == chosen
    assert premature_layers(GenerationConfig(), None) == ()


def test_dola_on_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="3 layers with tied"):
        premature_layers(from_json_dict({"dola_layers": "low"}), layers(3, tied=True))
    with pytest.raises(UnsupportedOption, match="dola_layers"):
        premature_layers(from_json_dict({"dola_layers": "low"}), None)


ROOM = Room(max_num_seqs=16, num_blocks=20, block_size=4)
SEARCH: dict[str, Any] = {"penalty_alpha": 0.5, "top_k": 4}


def search(
    request: dict[str, Any], config: dict[str, Any], **changes: Any
) -> ContrastiveSettings | None:
    options: dict[str, Any] = {"max_length": 32, "layers": layers(3), "room": ROOM, **changes}
    return contrastive_settings(from_json_dict(request), from_json_dict(config), **options)


def test_contrastive_search_is_four_fields_together() -> None:
    assert search(SEARCH, SEARCH) == ContrastiveSettings(0.5, 4, 3)
    assert search({}, SEARCH) == ContrastiveSettings(0.5, 4, 3)
    assert search({}, {"top_k": 4}) is None
    assert search({"penalty_alpha": 0.0}, {**SEARCH, "penalty_alpha": 0.0}) is None


@pytest.mark.parametrize("beside", [{"do_sample": True}, {"top_k": 1}, {"num_beams": 2}])
def test_a_model_s_file_alone_does_not_insist_on_it(beside: dict[str, Any]) -> None:
    config = {**SEARCH, **beside}
    assert search(beside, config) is None
    with pytest.raises(InvalidRequest, match="penalty_alpha"):
        search(config, config)


def test_candidates_need_room() -> None:
    assert search(SEARCH, SEARCH, max_length=64) is not None
    with pytest.raises(InvalidRequest, match=r"top_k.*KV cache"):
        search(SEARCH, SEARCH, max_length=65)
    with pytest.raises(InvalidRequest, match=r"top_k.*at most 16"):
        search(SEARCH, {**SEARCH, "top_k": 17})
    with pytest.raises(UnsupportedOption, match="penalty_alpha"):
        search(SEARCH, SEARCH, layers=None)


@pytest.mark.parametrize("kind", [TensorKind.HIDDEN_STATES, TensorKind.ATTENTIONS])
def test_a_model_whose_layers_cannot_be_read_has_no_such_tensors(kind: TensorKind) -> None:
    def wishes(shapes: LayerShapes | None) -> object:
        sizes = TensorSizes(vocab_size=9, layers=shapes, element_size=4, max_bytes=10**9)
        return tensor_wishes(
            from_json_dict({kind: True}),
            num_prompt_tokens=2,
            max_length=5,
            num_sequences=1,
            sizes=sizes,
        )

    with pytest.raises(UnsupportedOption, match=kind):
        wishes(None)
    if kind is TensorKind.ATTENTIONS:
        with pytest.raises(UnsupportedOption, match="different numbers of heads"):
            wishes(layers(2, heads=(4, 2)))
    assert wishes(layers(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_number_format_reaches_the_client(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.5, -0.25, 3e4], [0.0, -torch.inf, 2.0**-14]]).to(dtype)
    kind = TensorKind.HIDDEN_STATES
    parts = TensorParts()
    for message in tensor_chunks(0, [TokenTensor(kind, 0, values), TokenTensor(kind, 1, values.T)]):
        parts.take(message.chunk.tensors)
    received = [tensor.tolist() for tensor in parts.of(message.chunk.tensors[0].kind)]
    assert received == [values.tolist(), values.T.tolist()]


def test_a_server_cannot_default_to_leaving_the_model_early() -> None:
    result = CliRunner().invoke(app, ["--model", "any", "--draft-method", "early-exit"])
    assert result.exit_code == 2
    assert "early-exit" in result.output
