"""How the draft links fare, in Prometheus' names, by address of the draft service.

As many addresses as there are drafters: links that were given up are not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from outrider_runtime.metrics import histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outrider_target.drafting.remote.fleet import DraftFleet
from outrider_target.drafting.remote.link import DraftLink, LinkStatus
from outrider_target.drafting.remote.link_state import LinkState
from outrider_target.drafting.remote.links import DraftLinks


class _Shown(NamedTuple):
    """A link as the asyncio loop and as the engine see it."""

    link: DraftLink
    state: LinkState | None
    """None for a moment, when it was just found."""


class LinkCollector(Collector):
    """What the draft links have carried, and how their drafters answer.

    Bytes over `outrider_drafter_num_accepted_tokens_total{method="remote"}`: bytes per accepted
    token.
    """

    def __init__(self, links: DraftLinks, fleet: DraftFleet) -> None:
        self._links = links
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """One snapshot in Prometheus' form; counters get their `_total` there."""
        shown = [
            _Shown(link, self._fleet.state(index)) for index, link in tuple(self._links.present)
        ]
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"outrider_draft_link_{name}", text, labels=["address"])
            for one in shown:
                gauge.add_metric([one.link.address], value(one))
            yield gauge
        for name, (text, value) in _COUNTERS.items():
            counter = CounterMetricFamily(f"outrider_draft_link_{name}", text, labels=["address"])
            for one in shown:
                counter.add_metric([one.link.address], value(one))
            yield counter
        yield histogram(
            "draft_link_answer_seconds",
            "Time from asking a drafter to its answer.",
            [([one.link.address], one.state.pace.answers.seconds) for one in shown if one.state],
            ["address"],
        )


_Figures = Mapping[str, tuple[str, Callable[[_Shown], float]]]

_GAUGES: _Figures = {
    "up": ("Whether the link is ready: 1, or 0.", lambda one: one.link.status is LinkStatus.READY),
    "num_sessions": (
        "Sequences that the drafter drafts for.",
        lambda one: len(one.state.sessions) if one.state else 0,
    ),
}

_COUNTERS: _Figures = {
    "losses": ("Times that a ready link was lost.", lambda one: one.link.num_losses),
    "missed_answers": (
        "Waits for the drafter that ended without an answer.",
        lambda one: one.state.pace.answers.num_missed if one.state else 0,
    ),
    "offences": (
        "Proposals dropped because they broke the protocol; begins anew with each connection.",
        lambda one: one.state.offences if one.state else 0,
    ),
    "frames_sent": ("Frames to the drafter.", lambda one: one.link.traffic.frames_sent),
    "frames_received": ("Frames from the drafter.", lambda one: one.link.traffic.frames_received),
    "sent_bytes": ("Bytes of frames to the drafter.", lambda one: one.link.traffic.bytes_sent),
    "received_bytes": (
        "Bytes of frames from the drafter.",
        lambda one: one.link.traffic.bytes_received,
    ),
}
