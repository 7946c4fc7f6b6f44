"""Whether objects are what the API servers of Kubernetes and the Prometheus operator accept."""

from __future__ import annotations

from collections.abc import Iterator

import kubernetes_validate
from cloudcoil.models.prometheus_operator import v1 as monitoring
from pydantic import ValidationError

from tools.deployment.render import Object

# From the first release that knows the sleep action of preStop without being asked to.
VERSIONS = ("1.30", "1.37")
_MONITORING = "monitoring.coreos.com/v1"


def problems(found: Object) -> Iterator[str]:
    """What is wrong with an object: unknown words, missing ones, wrong types."""
    if found["apiVersion"] == _MONITORING:
        yield from _problems_of_monitoring(found)
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {error.message} at {'/'.join(map(str, error.path))}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"Kubernetes {version} has no {found['apiVersion']} {found['kind']}"


def _problems_of_monitoring(found: Object) -> Iterator[str]:
    model = getattr(monitoring, found["kind"], None)
    if model is None:
        yield f"{_MONITORING} has no {found['kind']}"
        return
    try:
        read = model.model_validate(found)
    except ValidationError as error:
        for fault in error.errors():
            yield f"{fault['msg']} at {'/'.join(map(str, fault['loc']))}"
        return
    # The models pass over words that they do not know.
    if read.model_dump(by_alias=True, exclude_unset=True, mode="json") != found:
        yield "there are words that the operator does not know"
