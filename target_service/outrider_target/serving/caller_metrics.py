"""Who asks for how much, by the caller's name. Only where the operator wants it.

A name is that of a key or a certificate, so an operator knows how many there are; beyond a bound
they are counted together all the same, since a certificate authority may be generous.
"""

from __future__ import annotations

from outrider_runtime.interceptors import CallEnd
from prometheus_client import CollectorRegistry, Counter

MOST_CALLERS = 256
OTHERS = "(others)"
NOBODY = "(unknown)"
"""Callers without a key or certificate, and those that were turned away."""

_METHODS = ("Generate", "Score")


class CallerMetrics:
    """Counted once a call, and once a request that ran to its end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._callers: set[str] = set()
        self._requests = Counter(
            "outrider_caller_requests",
            "Requests of a caller, by the code they ended with.",
            ("caller", "code"),
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "outrider_caller_prompt_tokens",
            "Prompt tokens of a caller's completed requests.",
            ("caller",),
            registry=registry,
        )
        self._generation_tokens = Counter(
            "outrider_caller_generation_tokens",
            "Tokens generated in a caller's completed requests.",
            ("caller",),
            registry=registry,
        )

    def observe(self, end: CallEnd) -> None:
        """Count a call that ended, if it was a request."""
        if end.method.rpartition("/")[2] in _METHODS:
            self._requests.labels(self._label(end.caller), end.code.name).inc()

    def count_tokens(self, caller: str, *, prompt: int, generated: int) -> None:
        """Count the tokens of a completed request."""
        label = self._label(caller)
        self._prompt_tokens.labels(label).inc(prompt)
        self._generation_tokens.labels(label).inc(generated)

    def _label(self, caller: str) -> str:
        if not caller:
            return NOBODY
        if caller not in self._callers:
            if len(self._callers) >= MOST_CALLERS:
                return OTHERS
            self._callers.add(caller)
        return caller
