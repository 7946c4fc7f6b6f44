"""Who may connect to whom, by rendered NetworkPolicies, as a network plug-in judges it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tools.deployment.render import Object, of_kind
from tools.deployment.rules.network import selects

NAMESPACE = "outrider"


class Peer(NamedTuple):
    """What policies know of an address."""

    labels: Mapping[str, str]
    namespace: Mapping[str, str]
    """Labels of its namespace."""
    ports: Mapping[str, int]
    """Of a pod of ours, by name."""

    @property
    def is_ours(self) -> bool:
        """Whether the policies are for it: they are of our namespace alone."""
        return self.namespace.get("kubernetes.io/metadata.name") == NAMESPACE


def pod_of(deployment: Object) -> Peer:
    """A pod of a Deployment of ours."""
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    namespace = {"kubernetes.io/metadata.name": NAMESPACE}
    return Peer(template["metadata"]["labels"], namespace, ports)


def allows(objects: list[Object], source: Peer, sink: Peer, port: int) -> bool:
    """Whether a connection may be made."""
    return _allows(objects, source, sink, sink, port, "egress", "to") and _allows(
        objects, sink, source, sink, port, "ingress", "from"
    )


def _allows(
    objects: list[Object], of: Peer, other: Peer, sink: Peer, port: int, way: str, word: str
) -> bool:
    """Whether the policies of one end let the other through; without any, everybody is."""
    policies = [
        policy["spec"]
        for policy in of_kind(objects, "NetworkPolicy").values()
        if of.is_ours
        and way.capitalize() in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], dict(of.labels))
    ]
    rules = [rule for policy in policies for rule in policy.get(way, ())]
    return not policies or any(
        _is_among(other, rule.get(word)) and _is_open(port, sink, rule.get("ports"))
        for rule in rules
    )


def _is_among(peer: Peer, chosen: list[Object] | None) -> bool:
    return chosen is None or any(
        (
            selects(one["namespaceSelector"], dict(peer.namespace))
            if "namespaceSelector" in one
            else peer.is_ours
        )
        and selects(one.get("podSelector", {}), dict(peer.labels))
        for one in chosen
    )


def _is_open(port: int, sink: Peer, ports: list[Object] | None) -> bool:
    return ports is None or any(
        one["protocol"] == "TCP" and sink.ports.get(one["port"], one["port"]) == port
        for one in ports
    )
