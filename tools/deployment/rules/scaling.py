"""How many there are: replicas or an autoscaler on exported metrics, and who may go at once."""

from __future__ import annotations

from collections.abc import Iterator

from tools.deployment.render import Object, of_kind
from tools.deployment.rules.network import selects
from tools.deployment.rules.serving import Served, all_served
from tools.deployment.services import gauges


def problems(objects: list[Object]) -> Iterator[str]:
    """What is wrong with the numbers."""
    deployments = of_kind(objects, "Deployment")
    scaled = {
        scaler["spec"]["scaleTargetRef"]["name"]: scaler
        for scaler in of_kind(objects, "HorizontalPodAutoscaler").values()
    }
    if unknown := scaled.keys() - deployments.keys():
        yield f"{sorted(unknown)} are scaled but not there"
    served = all_served(objects)
    for name, deployment in deployments.items():
        if (name in scaled) == ("replicas" in deployment["spec"]):
            yield f"{name} needs either replicas or an autoscaler"
        if name in scaled and name in served:
            yield from _of_scaler(scaled[name], served[name])
        yield from _of_budget(name, deployment, objects)


def _of_scaler(scaler: Object, served: Served) -> Iterator[str]:
    name = scaler["metadata"]["name"]
    exported = gauges(served.service)
    for metric in scaler["spec"]["metrics"]:
        asked = metric.get("pods", {}).get("metric", {}).get("name")
        if asked not in exported:
            yield f"{name} scales by {asked}, which is no gauge of its pods"
    if scaler["spec"].get("minReplicas", 1) < 2:
        yield f"{name} may leave a single pod"
    if "scaleDown" not in scaler["spec"].get("behavior", {}):
        yield f"{name} says nothing of how fast it may shrink"


def _of_budget(name: str, deployment: Object, objects: list[Object]) -> Iterator[str]:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    budgets = [
        budget
        for budget in of_kind(objects, "PodDisruptionBudget").values()
        if selects(budget["spec"]["selector"], labels)
    ]
    if len(budgets) != 1:
        yield f"{name} has {len(budgets)} disruption budgets"
    for budget in budgets:
        if budget["spec"].get("maxUnavailable") in (None, 0, "0%"):
            yield f"{name}: its budget would keep every node from being drained"
