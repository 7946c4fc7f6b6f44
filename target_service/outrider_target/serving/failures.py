"""What the caller of a failed request is told; the log has the rest."""

from __future__ import annotations

import structlog
from outrider_runtime.errors import InternalError, InvalidRequest, OutriderError, PluginFailed

from outrider_target.engine.events import RequestFailed
from outrider_target.requests.request import GenerationRequest

log = structlog.get_logger()


def error_for_caller(request: GenerationRequest, failure: RequestFailed) -> OutriderError:
    """The error that ends its call. Logs what is not the caller's own doing."""
    if isinstance(failure.error, InvalidRequest):
        return failure.error
    log.error("request_failed", request_id=request.id, error=repr(failure.error))
    if isinstance(failure.error, PluginFailed):
        return failure.error
    if failure.refusal is not None:
        return InvalidRequest("generation_config", failure.refusal)
    return InternalError(request.id)
