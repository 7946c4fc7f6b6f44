"""What `deploy/` says is checked without a cluster: `python -m tools.deployment`.

Rendered by kustomize, validated against the schemas of Kubernetes and of the Prometheus operator,
and held to the rules of `rules/`, which know the commands' flags and the metrics they export.
"""
