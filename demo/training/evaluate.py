"""Held-out loss of both models, how often they agree, what a forward costs, and samples."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path

import corpus
import data
import model as models
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

LENGTH = 1024
EDGES = (0, 64, 128, 256, 512, 1024)
SAMPLES = ("def main(", "import os\n", 'class Stack:\n    """')


@torch.no_grad()
def score(model: LlamaForCausalLM, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the most probable token at every place of every window."""
    losses, choices = [], []
    for row in rows:
        logits = model(input_ids=row[None, :-1], use_cache=False).logits[0]
        losses.append(functional.cross_entropy(logits, row[1:], reduction="none"))
        choices.append(logits.argmax(-1))
    return torch.stack(losses), torch.stack(choices)


@torch.no_grad()
def overlap(target: LlamaForCausalLM, draft: LlamaForCausalLM, rows: Tensor) -> float:
    """The mean of sum(min(p, q)): how often a sampled draft token is accepted at temperature 1."""
    shares = []
    for row in rows:
        both = [m(input_ids=row[None, :-1], use_cache=False).logits[0] for m in (target, draft)]
        p, q = (logits.softmax(-1) for logits in both)
        shares.append(torch.minimum(p, q).sum(-1).mean())
    return float(torch.stack(shares).mean())


@torch.no_grad()
def forward_ms(model: LlamaForCausalLM, repeats: int = 100) -> float:
    """The median processor time of a forward of one token after 64 in the cache, in ms."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.ones(1, 64, dtype=torch.long), past_key_values=cache)
    times = []
    for _ in range(repeats):
        began = time.process_time()
        model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
        times.append(time.process_time() - began)
    return statistics.median(times) * 1e3


@torch.no_grad()
def greedy(target: LlamaForCausalLM, ids: list[int], count: int) -> list[int]:
    """The target's greedy continuation."""
    made: Tensor = target.generate(
        torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return [int(token) for token in made[0]]


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="folder that holds target/ and draft/")
    parser.add_argument("--windows", type=int, default=128, help="how many windows of 1024 tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    target, draft = (models.load(options.models / name) for name in ("target", "draft"))
    tokenizer = AutoTokenizer.from_pretrained(options.models / "target")

    held_out = corpus.split(corpus.documents())[1]
    tokens = data.stream(held_out, options.models / "target")
    size = sum(len(document.text.encode()) for document in held_out)
    rows = data.windows(tokens, LENGTH)
    rows = rows[:: max(1, len(rows) // options.windows)][: options.windows]
    counted = rows[:, 1:].numel()
    print(f"{counted} of {len(tokens)} held-out tokens, {size / len(tokens):.3f} bytes each")
    chosen = []
    for name, model in (("target", target), ("draft", draft)):
        losses, choices = score(model, rows)
        chosen.append(choices)
        mean = float(losses.mean())
        bits = mean / math.log(2) * len(tokens) / size
        right = float((choices == rows[:, 1:]).float().mean())
        print(f"{name}: {mean:.3f} nats/token, {bits:.3f} bits/byte, {right:.3f} top-1")
        for low, high in itertools.pairwise(EDGES):
            print(f"  positions {low}-{high}: {float(losses[:, low:high].mean()):.3f}")
    print(f"greedy agreement: {float((chosen[0] == chosen[1]).float().mean()):.3f}")
    print(f"overlap of the distributions: {overlap(target, draft, rows[:32]):.3f}")

    agreed = []
    for row in rows[:32, :96].tolist():
        made = torch.tensor(greedy(target, row, 64))
        guess = score(draft, made[None])[1][0]
        agreed.append(float((guess[len(row) - 1 :] == made[len(row) :]).float().mean()))
    print(f"greedy agreement on the target's own continuations: {statistics.mean(agreed):.3f}")
    costs = [(forward_ms(target), forward_ms(draft)) for _ in range(7)]
    each = [statistics.median(cost) for cost in zip(*costs, strict=True)]
    ratio = statistics.median(one / other for one, other in costs)
    print(f"one-token forward: {each[0]:.2f} and {each[1]:.2f} ms of processor time")
    print(f"cost of the target in draft forwards: {ratio:.2f}")
    for prompt in SAMPLES:
        ids = greedy(target, tokenizer(prompt)["input_ids"], 80)
        print("-" * 40, tokenizer.decode(ids), sep="\n")


if __name__ == "__main__":
    main()
