"""What a draft model should propose, computed slowly: whole-text forwards and a plain Philox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB_SIZE = 61
MAX_POSITIONS = 256
_MASK = 2**32 - 1


def tiny_model(*, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    """A random Llama whose logits differ visibly between tokens. A new object each time."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20.0)
    return model


def philox(key: int, counter: Sequence[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011), straight from the paper."""
    k0, k1 = key & _MASK, key >> 32 & _MASK
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


@cache
def gumbel(seed: int, sample_index: int, position: int, vocab_size: int) -> torch.Tensor:
    """Noise of a position: float64 [vocab]."""
    values = []
    for token_id in range(vocab_size):
        words = philox(seed, [token_id >> 2, position, sample_index << 8, 0])
        uniform = (words[token_id & 3] + 0.5) * 2.0**-32
        values.append(-math.log(-math.log1p(-uniform)))
    return torch.tensor(values, dtype=torch.float64)


class Reference:
    """A draft model's own continuation.

    Args:
        model: Run over the whole text for every token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def log_probs(
        self,
        tokens: Sequence[int],
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        vocab_size: int | None = None,
    ) -> torch.Tensor:
        """Log-probabilities of the next token after transformers' warpers: float64 [vocab]."""
        warpers = LogitsProcessorList()
        if temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(temperature))
        if top_k:
            warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            warpers.append(TopPLogitsWarper(top_p))
        token_ids = torch.tensor([list(tokens)])
        with torch.inference_mode():
            logits = self.model(input_ids=token_ids).logits[:, -1, :vocab_size].float()
        return torch.log_softmax(warpers(token_ids, logits)[0].double(), dim=-1)

    def greedy(
        self, tokens: Sequence[int], count: int, *, vocab_size: int | None = None
    ) -> list[int]:
        """The most probable tokens, one after the other."""
        text = list(tokens)
        for _ in range(count):
            text.append(int(self.log_probs(text, vocab_size=vocab_size).argmax()))
        return text[len(tokens) :]

    def sampled(
        self,
        tokens: Sequence[int],
        count: int,
        *,
        seed: int,
        sample_index: int = 0,
        draft_temperature: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        vocab_size: int | None = None,
    ) -> list[int]:
        """The tokens `argmax(log q / tau + g)`, with the noise of their absolute positions."""
        text = list(tokens)
        for _ in range(count):
            log_probs = self.log_probs(
                text, temperature=temperature, top_k=top_k, top_p=top_p, vocab_size=vocab_size
            )
            noise = gumbel(seed, sample_index, len(text), len(log_probs))
            text.append(int((log_probs / draft_temperature + noise).argmax()))
        return text[len(tokens) :]
