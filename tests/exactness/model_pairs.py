"""Tiny model pairs in folders: a random target, and drafts that agree with it now and then.

All have the same byte-level tokenizer, made on the spot. No model has an end-of-sequence token of
its own, so that a text ends where a test wants it to.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from engine.tiny_models import build_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 320
MAX_POSITIONS = 512
_SHARPNESS = 6.0

_CORPUS = (
    "the target decides the text; the draft only makes it arrive sooner, and a drafter that is "
    "slow, wrong or gone costs speed and nothing else: déjà vu, naïve, 東京, für alle Fälle 🙂 "
    "def main(args): return [a for a in args if a not in (0, 1, 2)] # the end of the line\n"
)


class ModelPair(NamedTuple):
    """Folders of models with one tokenizer."""

    target: Path
    draft: Path
    """The target with noise on its weights: right often, not always."""
    tokenizer: PreTrainedTokenizerFast


def byte_tokenizer(corpus: str = _CORPUS) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCAB_SIZE` entries, some of them pieces of characters or words.

    Args:
        corpus: Where the pieces are learnt; needs to have enough of them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def make_pair(
    folder: Path, architecture: str, *, noise: float = 0.08, seed: int = 0, num_layers: int = 3
) -> ModelPair:
    """Save a pair under `folder`.

    Args:
        folder: Where the folders `target` and `draft` are made.
        architecture: A key of `engine.tiny_models.SUPPORTED`.
        noise: Standard deviation of the noise on the draft's weights, relative to theirs.
        seed: Of the weights.
        num_layers: Fewer are faster.
    """
    tokenizer = byte_tokenizer()
    model = build_tiny(
        architecture,
        **_sizes(architecture, num_layers),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        seed=seed,
    )
    # Random heads give flat distributions; this makes some tokens likely, as in life.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(_SHARPNESS)
    save(model, tokenizer, folder / "target")
    perturb(model, noise, seed=seed + 1)
    save(model, tokenizer, folder / "draft")
    return ModelPair(folder / "target", folder / "draft", tokenizer)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def perturb(model: PreTrainedModel, noise: float, *, seed: int) -> None:
    """Add noise to every weight matrix, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter += noise * parameter.std() * drawn


def _sizes(architecture: str, num_layers: int) -> dict[str, int]:
    # Both are names that GPT-2 calls something else and understands all the same.
    return {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "num_hidden_layers": num_layers,
    }
