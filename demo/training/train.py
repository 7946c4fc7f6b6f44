"""Train the target on the corpus, or the draft on the corpus and the target's predictions.

The schedule follows the clock: the run ends after --minutes, however fast the machine is.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import data
import model as models
import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 1234
TOKENS_A_STEP = 4096
SHORT, LONG = 256, 1024
LONG_FROM = 0.75
WARM_UP, DECAY_FROM = 0.02, 0.45
EXPORT_EVERY = 600.0
DISTILLED = 0.8


def rate(progress: float) -> float:
    """The factor on the learning rates: a short rise, a plateau, then linear to zero."""
    return min(progress / WARM_UP, 1.0, max(0.0, (1.0 - progress) / (1.0 - DECAY_FROM)))


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embeddings and the norms."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed" not in name
        (matrices if inside else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def loss(student: nn.Module, rows: Tensor, teacher: nn.Module | None) -> Tensor:
    """Cross-entropy with the text, mixed with the divergence from the teacher if there is one."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = student(input_ids=rows[:, :-1], use_cache=False).logits
    logits = logits.float().flatten(0, 1)
    text = functional.cross_entropy(logits, rows[:, 1:].flatten())
    if teacher is None:
        return text
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = teacher(input_ids=rows[:, :-1], use_cache=False).logits
    wanted = wanted.float().flatten(0, 1).softmax(-1)
    return DISTILLED * functional.cross_entropy(logits, wanted) + (1 - DISTILLED) * text


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor) -> float:
    """The loss on 32 windows spread over the held-out stream, in nats a token."""
    rows = data.windows(tokens, LONG)
    rows = rows[:: max(1, len(rows) // 32)][:32]
    return sum(float(loss(model, row[None], None)) for row in rows) / len(rows)


def main() -> None:
    """Train one model and export it into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(models.SHAPES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--init", type=Path, help="folder of the model to start from")
    parser.add_argument("--teacher", type=Path, help="folder of the model to distil from")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    options = parser.parse_args()

    seed = SEED + (options.init is not None)
    torch.manual_seed(seed)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(seed)
    training, held_out = data.parts(options.tokenizer)
    model = models.load(options.init) if options.init else models.build(options.name)
    model.train()
    teacher = models.load(options.teacher) if options.teacher else None
    step_loss = torch.compile(loss, dynamic=False) if options.compile else loss
    stepping = optimisers(model)
    base = [group["lr"] for optimiser in stepping for group in optimiser.param_groups]
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.name}: {size} parameters, {len(training)} training tokens", flush=True)

    start = exported = time.monotonic()
    step, average = 0, math.nan
    while (progress := (time.monotonic() - start) / (60 * options.minutes)) < 1:
        length = LONG if progress >= LONG_FROM else SHORT
        rows = data.crops(training, TOKENS_A_STEP // length, length, generator)
        value = step_loss(model, rows, teacher)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        groups = [group for optimiser in stepping for group in optimiser.param_groups]
        for group, peak in zip(groups, base, strict=True):
            group["lr"] = peak * rate(progress)
        for optimiser in stepping:
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        now = float(value.detach())
        average = now if math.isnan(average) else 0.98 * average + 0.02 * now
        if step % 50 == 0:
            spent = time.monotonic() - start
            speed = step * TOKENS_A_STEP / spent
            said = f"step {step}: loss {average:.3f}, {speed:.0f} tokens/s"
            print(f"{spent:6.0f} s, {said}", flush=True)
        if time.monotonic() - exported > EXPORT_EVERY:
            exported = time.monotonic()
            models.export(model, options.out)
            print(f"exported at {held_out_loss(model, held_out):.3f} held out", flush=True)
    models.export(model, options.out)
    print(f"done: {step * TOKENS_A_STEP} tokens, {held_out_loss(model, held_out):.3f} held out")


if __name__ == "__main__":
    main()
