"""A grown model says what the model says that it was grown from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from outrider_demo import DRAFT_DIR, held_out_prompts
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.pairs.grown import Growth, ShapeError, grow

# From 192 dimensions, 1024 neurons, 1 layer, 3 heads over 1 of keys and values.
SMALL = Growth(hidden_size=480, intermediate_size=1200, layers=3, heads=6)


@pytest.fixture(scope="module")
def grown_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    grow(DRAFT_DIR, folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    tokenizer = Tokenizer.from_file(str(DRAFT_DIR / "tokenizer.json"))
    return torch.tensor([tokenizer.encode(held_out_prompts()[0].text).ids])


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_a_grown_model_has_the_shape_and_the_scores_and_the_text(
    grown_folder: Path, prompt: torch.Tensor
) -> None:
    original, grown = load(DRAFT_DIR), load(grown_folder)
    assert grown.config.num_hidden_layers == 3
    assert (grown.config.num_attention_heads, grown.config.num_key_value_heads) == (6, 2)
    assert grown.num_parameters() > 3 * original.num_parameters()
    with torch.no_grad():
        expected, found = original(prompt).logits, grown(prompt).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    texts = [model.generate(prompt, max_new_tokens=24) for model in (original, grown)]
    assert torch.equal(*texts)


def test_what_is_new_is_there_to_be_computed(grown_folder: Path) -> None:
    """Noise where it changes nothing: no engine is faster for finding zeros."""
    weights = load(grown_folder).state_dict()
    for name, weight in weights.items():
        if "proj" in name and not name.endswith(("o_proj.weight", "down_proj.weight")):
            assert (weight == 0).float().mean() < 0.01, name
    silent = weights["model.layers.2.mlp.down_proj.weight"]
    assert not silent.any()


def test_without_the_correction_for_its_width_it_would_say_something_else(
    grown_folder: Path, prompt: torch.Tensor
) -> None:
    original, grown = load(DRAFT_DIR), load(grown_folder)
    with torch.no_grad():
        grown.model.norm.weight *= (SMALL.hidden_size / original.config.hidden_size) ** 0.5
        expected, found = original(prompt).logits, grown(prompt).logits
    assert (expected - found).abs().max() > 0.5


@pytest.mark.parametrize(
    "growth",
    [SMALL._replace(hidden_size=128), SMALL._replace(layers=0), SMALL._replace(heads=2)],
)
def test_nothing_is_grown_smaller_and_no_group_of_heads_is_split(
    growth: Growth, tmp_path: Path
) -> None:
    with pytest.raises(ShapeError, match="does not hold"):
        grow(DRAFT_DIR, tmp_path / "grown", growth)
