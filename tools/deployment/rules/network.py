"""Who reaches whom: Services, the targets' way to the drafters, policies, what is scraped."""

from __future__ import annotations

from collections.abc import Iterator

from tools.deployment.render import Object, of_kind
from tools.deployment.rules.serving import Served, all_served
from tools.deployment.services import DRAFT, TARGET


def problems(objects: list[Object]) -> Iterator[str]:
    """What is wrong between the pods."""
    yield from _of_services(objects)
    yield from _of_draft_links(objects)
    yield from _of_policies(objects)
    yield from _of_monitors(objects)


def selects(selector: Object, labels: Object) -> bool:
    """Whether a label selector matches."""
    for expression in selector.get("matchExpressions", ()):
        if expression["operator"] != "In":
            raise ValueError(f"cannot judge {expression['operator']}")
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def _of_services(objects: list[Object]) -> Iterator[str]:
    deployments = of_kind(objects, "Deployment")
    services = of_kind(objects, "Service")
    if services.keys() != deployments.keys():
        yield f"Services {sorted(services)} for Deployments {sorted(deployments)}"
    for name, served in all_served(objects).items():
        if name in services:
            labels = deployments[name]["spec"]["template"]["metadata"]["labels"]
            for problem in _of_service(services[name], served, labels):
                yield f"Service {name} {problem}"


def _of_service(service: Object, served: Served, labels: Object) -> Iterator[str]:
    if not selects({"matchLabels": service["spec"]["selector"]}, labels):
        yield "does not select its pods"
    if service["spec"].get("clusterIP") != "None":
        yield "is not headless: clients could not balance"
    ports = {port["name"]: port["containerPort"] for port in served.container["ports"]}
    for port in service["spec"]["ports"]:
        if ports.get(port["targetPort"]) != port["port"]:
            yield f"leads to a port {port['targetPort']} that is not there"
    protocol = "kubernetes.io/h2c" if served.told["ssl_certfile"] is None else "https"
    if protocol not in [port.get("appProtocol") for port in service["spec"]["ports"]]:
        yield f"does not say that it speaks {protocol}"


def _of_draft_links(objects: list[Object]) -> Iterator[str]:
    names = set()
    for name, service in of_kind(objects, "Service").items():
        host = f"{name}.{service['metadata']['namespace']}.svc.cluster.local"
        names |= {f"dns:///{host}:{port['port']}" for port in service["spec"]["ports"]}
    encrypted = {}
    for name, (runs, _, told) in all_served(objects).items():
        if runs is DRAFT:
            encrypted[name] = told["ssl_certfile"] is not None
            continue
        for address in told["draft"] or ():
            if address not in names:
                yield f"{name} dials {address}, which is no Service here"
        encrypted[f"link of {name}"] = told["draft_ca_certs"] is not None
        if not (told["draft_api_key"] or told["draft_api_key_file"]):
            yield f"{name} has no key for its drafters"
    if len(set(encrypted.values())) > 1:
        yield f"targets and drafters do not agree on TLS: {encrypted}"


def _of_policies(objects: list[Object]) -> Iterator[str]:
    policies = of_kind(objects, "NetworkPolicy").values()
    if not any(
        policy["spec"]["podSelector"] == {}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].keys() & {"ingress", "egress"}
        for policy in policies
    ):
        yield "no NetworkPolicy forbids what no other allows"
    for name, served in all_served(objects).items():
        template = of_kind(objects, "Deployment")[name]["spec"]["template"]
        rules = [
            rule
            for policy in policies
            if selects(policy["spec"]["podSelector"], template["metadata"]["labels"])
            for rule in policy["spec"].get("ingress", ())
        ]
        known = {port["name"] for port in served.container["ports"]}
        if any(not {port["port"] for port in rule.get("ports", ())} & known for rule in rules):
            yield f"{name}: a policy opens no port that it has, or all of them"
        if served.service is DRAFT:
            yield from (f"{name} {problem}" for problem in _of_peers(rules, objects))


def _of_peers(rules: list[Object], objects: list[Object]) -> Iterator[str]:
    opening = [
        rule for rule in rules if any(port["port"] == "grpc" for port in rule.get("ports", ()))
    ]
    for peer in (peer for rule in opening for peer in rule.get("from", [{}])):
        if not _is_target(peer, objects):
            yield f"can be reached by others than targets: {peer}"
    if not opening:
        yield "cannot be reached by targets"


def _is_target(peer: Object, objects: list[Object]) -> bool:
    """Whether a peer is of this namespace and nothing but targets."""
    if peer.keys() != {"podSelector"} or not peer["podSelector"].get("matchLabels"):
        return False
    served = all_served(objects)
    labels = {
        name: deployment["spec"]["template"]["metadata"]["labels"]
        for name, deployment in of_kind(objects, "Deployment").items()
    }
    chosen = [name for name in labels if selects(peer["podSelector"], labels[name])]
    return [served[name].service for name in chosen if name in served] == [TARGET]


def _of_monitors(objects: list[Object]) -> Iterator[str]:
    services = of_kind(objects, "Service")
    for name, monitor in of_kind(objects, "ServiceMonitor").items():
        seen = {
            service["metadata"]["name"]: service
            for service in services.values()
            if selects(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
        }
        if seen.keys() != services.keys():
            yield f"ServiceMonitor {name} sees {sorted(seen)} alone"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in seen.values():
                if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                    yield f"ServiceMonitor {name}: no port {endpoint['port']}"
