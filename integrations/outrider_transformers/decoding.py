"""Transformers' assisted decoding with a candidate generator of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator

from outrider_transformers.candidate_generator import RemoteCandidateGenerator
from outrider_transformers.remote_drafter import RemoteDrafter


def assisted_by(drafter: RemoteDrafter, *, streamer: Any = None) -> Callable[..., Any]:
    """What `generate` takes as `custom_generate` to be assisted by a draft service.

    Args:
        drafter: The draft service.
        streamer: Given here instead of to `generate`, which passes none on to a decoding of one's
            own.

    Returns:
        A decoding method. It raises `DrafterRefused` when the service does not fit the model.
    """

    def decode(model: Any, input_ids: Any, *, generation_config: Any, **arguments: Any) -> Any:
        generator = RemoteCandidateGenerator(drafter, generation_config)
        try:
            return GenerationMixin._assisted_decoding(
                _Assisted(model, generator),
                input_ids,
                generation_config=generation_config,
                streamer=streamer,
                **arguments,
            )
        finally:
            generator.close()

    return decode


class _Assisted:
    """A model that has another candidate generator: transformers has no parameter for it.

    A view, so that the model itself stays as it is, for other threads too.
    """

    def __init__(self, model: Any, generator: CandidateGenerator) -> None:
        self._model = model
        self._generator = generator

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._model(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _get_candidate_generator(self, **_: Any) -> CandidateGenerator:
        return self._generator
