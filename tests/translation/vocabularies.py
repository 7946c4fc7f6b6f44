"""Models with other vocabularies but the same weights, and tokenizers of many kinds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

CORPUS = (
    "def main(args):\n    return [a for a in args if a not in (0, 1, 2)]  # the end of the line\n"
    "class Drafter:\n    '''It rides ahead; the target decides. Déjà vu, naïve, 東京 🙂'''\n"
    "    def __init__(self, name: str) -> None:\n        self.name = name.lower().strip()\n"
)


def shuffled(size: int, *, seed: int = 0) -> list[int]:
    """A vocabulary's ids in another order."""
    ids = list(range(size))
    random.Random(seed).shuffle(ids)
    return ids


def with_vocabulary(source: Path, folder: Path, old_ids: Sequence[int]) -> Path:
    """Copy a model with a byte-level tokenizer, keeping some of its vocabulary in another order.

    The new id i is what `old_ids[i]` was. Special tokens and bytes have to be among them.
    """
    new_ids = {old: new for new, old in enumerate(old_ids)}
    model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True)
    rows = torch.tensor(old_ids)
    tied = model.config.tie_word_embeddings
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight = torch.nn.Parameter(layer.weight[rows].clone())
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    for config in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if (old := getattr(config, name, None)) is not None:
                setattr(config, name, new_ids[old])
    model.config.vocab_size = len(old_ids)
    model.save_pretrained(folder)
    _tokenizer_of(source, new_ids).save_pretrained(folder)
    return folder


def _tokenizer_of(source: Path, new_ids: dict[int, int]) -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(source, local_files_only=True)
    state = json.loads(loaded.backend_tokenizer.to_str())
    vocab = {t: new_ids[i] for t, i in state["model"]["vocab"].items() if i in new_ids}
    state["model"]["vocab"] = vocab
    state["model"]["merges"] = [m for m in state["model"]["merges"] if "".join(m) in vocab]
    for added in state["added_tokens"]:
        added["id"] = new_ids[added["id"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=loaded.bos_token,
        eos_token=loaded.eos_token,
    )


def byte_level(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Bytes and pieces of words; nothing is ever lost."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>", "<|user|>", "<tool>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """In the manner of SentencePiece: a space put first, bytes for what has no token."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, limit_alphabet=60)
    trained.train_from_iterator([CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(m) for m in model["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def words() -> PreTrainedTokenizerFast:
    """Whole words in lower case, one space between them: most texts come back changed."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[END]"], show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]")


def word_pieces() -> PreTrainedTokenizerFast:
    """Pieces of words in the manner of BERT, whose decoder tidies up spaces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
