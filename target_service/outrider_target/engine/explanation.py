"""What limits the speed of a deployment, in words. Pure: figures in, findings out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from outrider_target.drafting.silence import Silence
from outrider_target.engine.round_log import Recent

_NOTABLE = 0.2
"""Share of the sequence rounds, or of the time, from which on something is worth telling."""

_POOR_ACCEPTANCE = 0.3


class Figures(NamedTuple):
    """What is known of a deployment."""

    recent: Recent
    answer_seconds: float | None
    """Usual, of the fastest draft service; None without an answer so far."""
    asking_cost_ratio: float | None
    speedup_ratio: float | None


class Finding(NamedTuple):
    """Something that limits the speed, or shows that nothing does."""

    seen: str
    advice: str = ""


def explain(figures: Figures) -> list[Finding]:
    """What limits the speed and what would help, what matters most first."""
    recent = figures.recent
    if recent.num_rounds == 0:
        return [Finding("Nothing has been generated yet.", "Ask again while requests run.")]
    findings = [_gain(figures)] if figures.speedup_ratio is not None else []
    for silence, count in recent.silences:
        share = count / recent.num_sequence_rounds
        if share >= _NOTABLE and silence is not Silence.MEASURING:
            findings.append(_why_silent(silence, share, figures))
    findings.extend(_of_drafts(recent))
    findings.extend(_of_time(recent))
    if len(findings) == (figures.speedup_ratio is not None):
        findings.append(Finding("Nothing stands out: drafts come, and are accepted."))
    return findings


def _gain(figures: Figures) -> Finding:
    assert figures.speedup_ratio is not None
    return Finding(
        f"Drafting brings tokens {figures.speedup_ratio:.2f} times as fast as plain decoding, "
        "measured by rounds that run plainly now and then."
    )


def _why_silent(silence: Silence, share: float, figures: Figures) -> Finding:
    """Why so many sequence rounds had no draft."""
    rounds = f"In {share:.0%} of the rounds of a sequence"
    match silence:
        case Silence.NO_DRAFTER:
            return Finding(
                f"{rounds} nobody drafts: the requests, or the server's --draft-method, say so.",
                "Start the target with --draft ADDRESS, or with --draft-method suffix or "
                "prompt-lookup, which need no draft service.",
            )
        case Silence.NO_LINK:
            return Finding(
                f"{rounds} no draft service with room can be reached.",
                "`outrider info` tells each link's state and why it is down; add draft services, "
                "or raise their --max-sessions.",
            )
        case Silence.NOT_WORTH_ASKING:
            cost = ""
            if figures.asking_cost_ratio is not None:
                cost = f": rounds with it take {figures.asking_cost_ratio:.2f} times as long"
            return Finding(
                f"{rounds} asking the draft service would cost more than its answer brings{cost}.",
                "Give the drafter cores of its own, or a machine of its own nearby; use a smaller "
                "draft model, or one that was trained on texts like these.",
            )
        case Silence.LATE:
            took = ""
            if figures.answer_seconds is not None:
                took = f": it takes {figures.answer_seconds * 1000:.1f} ms, {_forward(figures)}"
            return Finding(
                f"{rounds} the draft service had not answered in time{took}.",
                "Use a smaller draft model, a drafter nearer to the target or more of them; let it "
                "work meanwhile with --run-ahead.",
            )
        case Silence.NOT_WORTH_VERIFYING:
            return Finding(
                f"{rounds} there was a draft, but to verify any of it would have cost more than "
                "it brings: it is accepted too rarely for what a row costs in such a batch.",
                "Use a drafter that agrees more often. On the CPU rows are cheap only with "
                "--cpu-kernels and float32.",
            )
        case _:
            return Finding(
                f"{rounds} the drafter has nothing to propose.",
                "Drafters without a model know repetitions only: add a draft model, or send a "
                "prediction with requests whose answers are known in part.",
            )


def _forward(figures: Figures) -> str:
    recent = figures.recent
    return f"a round's forward {recent.forward_seconds / recent.num_rounds * 1000:.1f} ms"


def _of_drafts(recent: Recent) -> Iterator[Finding]:
    """What becomes of drafts."""
    if recent.num_draft_tokens == 0:
        return
    rate = recent.num_accepted_tokens / recent.num_draft_tokens
    if rate < _POOR_ACCEPTANCE:
        yield Finding(
            f"Of {recent.num_draft_tokens} draft tokens verified, {rate:.0%} were accepted.",
            "Use a drafter that knows these texts; num_assistant_tokens_schedule=auto verifies "
            "no more than pays.",
        )


def _of_time(recent: Recent) -> Iterator[Finding]:
    """Where the time goes."""
    share = recent.between_seconds / (recent.between_seconds + recent.forward_seconds)
    if share >= _NOTABLE:
        yield Finding(
            f"In {share:.0%} of the time sequences run but the model does not: waits for drafts, "
            "prompts of other requests, delivery.",
            "With drafts that are waited for, a faster drafter or --run-ahead helps; else give the "
            "target a core more than its --threads.",
        )
