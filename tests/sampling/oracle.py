"""transformers' own processors as the oracle, and random requests to ask it about."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import transformers
from outrider_contract.generation_config import from_json_dict
from outrider_runtime.conversion import sampling_parameters
from outrider_runtime.model.selection import RowGroup
from packaging.version import Version
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.utils import GenerationMixin

MAX_LENGTH = 40
# Before, a phrase as long as the text was not looked for, token 0 could not be biased in a list,
# and a suppressed end of sequence became NaN under exponential_decay_length_penalty.
OLDER = Version(transformers.__version__) < Version("5.23")


class Request(NamedTuple):
    """One sequence in a batch, described once for both sides."""

    options: Mapping[str, Any]
    """GenerationConfig's JSON form."""
    token_ids: Sequence[int]
    num_rows: int
    num_prompt_tokens: int
    seed: int = 0

    def group(self) -> RowGroup:
        parameters = sampling_parameters(
            from_json_dict({"top_k": 0, **self.options}),
            num_prompt_tokens=self.num_prompt_tokens,
            max_length=self.options.get("max_length", MAX_LENGTH),
        )
        return RowGroup(
            parameters, self.seed, 0, self.token_ids, self.num_rows, self.num_prompt_tokens
        )


def oracle_scores(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """The scores transformers would have had, asked for one position after the other."""
    rows: list[torch.Tensor] = []
    for request in requests:
        processors = _processors(request, logits.shape[-1])
        first = len(request.token_ids) - request.num_rows + 1
        if marked_by_synthid(request):  # its processor counts its calls
            for length in range(request.num_prompt_tokens, first):
                before = torch.tensor([list(request.token_ids[:length])])
                processors(before, logits[:1].clone())
        for length in range(first, first + request.num_rows):
            prefix = torch.tensor([list(request.token_ids[:length])])
            rows.append(processors(prefix, logits[len(rows)][None].clone())[0])
    return torch.stack(rows)


def marked_by_synthid(request: Request) -> bool:
    return "ngram_len" in request.options.get("watermarking_config", {})


def _processors(request: Request, vocab_size: int) -> LogitsProcessorList:
    options = {"max_length": MAX_LENGTH, "top_k": 0, **request.options}
    if marked_by_synthid(request):  # transformers takes every dict for a green list
        synthid = SynthIDTextWatermarkingConfig(**options["watermarking_config"])
        options["watermarking_config"] = synthid
    config = GenerationConfig(**options)
    if config.min_new_tokens is not None:  # as `generate` does before it builds the processors
        config.min_length = request.num_prompt_tokens + config.min_new_tokens
    eos = config.eos_token_id
    eos = [eos] if isinstance(eos, int) else eos
    config._eos_token_tensor = None if eos is None else torch.tensor(eos)
    model = SimpleNamespace(
        config=SimpleNamespace(
            is_encoder_decoder=False,
            get_text_config=lambda: SimpleNamespace(vocab_size=vocab_size),
        ),
        _merge_criteria_processor_list=lambda default, custom: default,
    )
    return GenerationMixin._get_logits_processor(
        model,
        config,
        input_ids_seq_length=request.num_prompt_tokens,
        encoder_input_ids=torch.tensor([list(request.token_ids[: request.num_prompt_tokens])]),
        device="cpu",
    )


def decimal(rng: random.Random, low: float, high: float) -> float:
    """A number with few digits, which survives the 32 bits of the wire."""
    return round(rng.uniform(low, high), 4)


def some_ids(rng: random.Random, vocab_size: int, at_most: int) -> list[int]:
    return rng.sample(range(vocab_size), rng.randint(1, min(at_most, vocab_size)))


def phrases(rng: random.Random, token_ids: Sequence[int], vocab_size: int) -> list[list[int]]:
    """Phrases that are often about to be completed: pieces of the text, and single tokens."""
    found: set[tuple[int, ...]] = {(token,) for token in some_ids(rng, vocab_size, 3)}
    for _ in range(4):
        start = rng.randrange(len(token_ids))
        end = rng.randint(start + 1, min(start + 4, len(token_ids)))
        found.add((*token_ids[start:end], rng.randrange(vocab_size)))
        found.add(tuple(token_ids[start:end]))
    if OLDER:
        found = {(token,) for token in range(1, 5)}  # more than there are ends of sequence
    return [list(phrase) for phrase in sorted(found)]


EDITS = (
    "sequence_bias",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "watermarking_config",
    "renormalize_logits",
)
WARPERS = (
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)


def option(
    name: str,
    rng: random.Random,
    *,
    token_ids: Sequence[int],
    num_prompt_tokens: int,
    vocab_size: int,
) -> Any:
    """A value of one option that has an effect on most texts."""
    length = len(token_ids)
    match name:
        case "sequence_bias":
            return [[phrase, decimal(rng, -3, 3)] for phrase in phrases(rng, token_ids, vocab_size)]
        case "bad_words_ids":
            return phrases(rng, token_ids, vocab_size)
        case "repetition_penalty" | "encoder_repetition_penalty":
            return decimal(rng, 0.5, 2.0)
        case "no_repeat_ngram_size" | "encoder_no_repeat_ngram_size":
            return rng.randint(1, 4)
        case "min_length":
            return rng.randint(1, length + 3)
        case "min_new_tokens":
            return rng.randint(1, length - num_prompt_tokens + 4)
        case "forced_bos_token_id":
            return rng.randrange(vocab_size)
        case "forced_eos_token_id" | "suppress_tokens" | "begin_suppress_tokens":
            return some_ids(rng, vocab_size, 3)
        case "remove_invalid_values" | "renormalize_logits":
            return True
        case "exponential_decay_length_penalty":
            return (rng.randint(0, 4), decimal(rng, 0.8, 1.6))
        case "watermarking_config":
            return watermark(rng, vocab_size)
        case "temperature":
            return decimal(rng, 0.2, 3.0)
        case "top_k":
            return rng.choice([1, 2, 5, 20, vocab_size - 1, vocab_size + 5])
        case "top_h" | "min_p" | "typical_p":
            return decimal(rng, 0.02, 0.98)
        case "top_p":
            return rng.choice([0.0, decimal(rng, 0.05, 0.999)])
        case "epsilon_cutoff" | "eta_cutoff":
            return decimal(rng, 0.001, 0.3)
        case _:
            raise ValueError(name)


def watermark(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """Options of a watermark of any kind."""
    kind = rng.choice(["lefthash", "selfhash", "synthid"])
    if kind == "synthid":
        return {
            "ngram_len": rng.randint(1, 5),
            "keys": [rng.getrandbits(rng.choice([10, 63])) for _ in range(rng.randint(1, 8))],
            "context_history_size": rng.choice([0, 1, 2, 1024]),
            "sampling_table_seed": rng.getrandbits(32),
            "sampling_table_size": rng.choice([1, 1000, 65536]),
            "skip_first_ngram_calls": rng.random() < 0.5,
        }
    if vocab_size < 40:
        kind = "lefthash"  # transformers' selfhash looks at 40 tokens, and fails if none is green
    return {
        "greenlist_ratio": decimal(rng, 0.3 if kind == "selfhash" else 0.05, 0.95),
        "bias": decimal(rng, -5, 5),
        "hashing_key": rng.choice([15485863, rng.getrandbits(62)]),
        "seeding_scheme": kind,
        "context_width": rng.randint(1, 4),
    }


def random_request(
    rng: random.Random, *, vocab_size: int, names: Sequence[str], do_sample: bool
) -> Request:
    """A text with repetitions, one to six rows, and the named options."""
    if "forced_eos_token_id" in names or "forced_bos_token_id" in names:
        names = [name for name in names if name != "suppress_tokens"]  # refused by transformers
    if OLDER and "exponential_decay_length_penalty" in names:
        names = [name for name in names if name not in EDITS or name.endswith("penalty")]
    num_prompt_tokens = rng.choice([1, 1, 2, rng.randint(3, 8)])
    num_rows = rng.randint(1, 6)
    # A verified chain starts at the end of prompt plus output, so row 0 sees at least the prompt.
    length = num_prompt_tokens + rng.choice([0, 0, rng.randint(1, 6)]) + num_rows - 1
    alphabet = some_ids(rng, vocab_size, 5)
    token_ids = [rng.choice(alphabet) for _ in range(length)]
    values = {
        name: option(
            name,
            rng,
            token_ids=token_ids,
            num_prompt_tokens=num_prompt_tokens,
            vocab_size=vocab_size,
        )
        for name in names
    }
    options = {
        "do_sample": do_sample,
        "eos_token_id": some_ids(rng, vocab_size, 3),
        "max_length": length + rng.randint(1, 4),
        **values,
    }
    return Request(options, token_ids, num_rows, num_prompt_tokens, seed=rng.getrandbits(64))


def random_logits(rng: random.Random, rows: int, vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    return torch.randn(rows, vocab_size, generator=generator) * rng.choice([0.3, 2.0, 6.0])
