"""The tokenizer: byte-level BPE of 4096 entries, the end-of-text token among them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import corpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
MAX_POSITIONS = 1024


def learn(texts: list[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from the texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def save(learned: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer under the class name that old and new versions of transformers know."""
    learned.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Learn the tokenizer from the training files and save it into every folder named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    folders: list[Path] = parser.parse_args().folders
    training, held_out = corpus.split(corpus.documents())
    learned = learn([document.text for document in training])
    for folder in folders:
        save(learned, folder)
    text = "".join(document.text for document in held_out)
    ids = learned(text, verbose=False)["input_ids"]
    density = len(text.encode()) / len(ids)
    print(f"{len(learned)} entries; {density:.3f} bytes a token on held-out text")


if __name__ == "__main__":
    main()
