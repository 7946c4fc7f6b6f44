"""Computing in a thread that ends with it.

Every thread that runs forwards keeps helpers of its own for as long as it lives. Once those of a
process are more than its cores, OpenMP lets them sleep between any two products instead of looking
out for the next: with two threads on two cores a forward took 29 ms instead of 17. So whatever runs
a model before the thread that serves does must not live on. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def passing(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls a function in a thread that ends with the call; waits for it."""
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as thread:
        return thread.submit(function, *args, **kwargs).result()
