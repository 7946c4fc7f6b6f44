"""Products of one input with several layers' weights, made one operator: q, k and v; gate and up.

An operator has a start, at which threads are woken, and an end, at which they wait for each other;
and the first weights of each are not fetched ahead. One operator for all has that once. Each output
is the sum that it was. Knows nothing of architectures.
"""

from __future__ import annotations

import operator
from collections import defaultdict

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node


def join_products(program: ExportedProgram) -> None:
    """Replaces products that share their input, in place."""
    kernels = torch.ops.outrider
    joined = {
        kernels.packed_linear.default: kernels.packed_linears.default,
        kernels.packed_linear_int8.default: kernels.packed_linears_int8.default,
    }
    graph = program.graph_module.graph
    siblings: dict[tuple[torch._ops.OpOverload, object], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target in joined:
            siblings[node.target, node.args[0]].append(node)
    for (target, _), products in siblings.items():
        if len(products) > 1:
            _join(graph, products, joined[target])
    program.graph_module.recompile()


def _join(graph: Graph, products: list[Node], target: torch._ops.OpOverload) -> None:
    """One call of `target` for several; weights are inputs of the graph, before all of them."""
    shared = products[0].args[0]
    # Of each: weights, perhaps scales, bias, number of outputs. Lists of each, for all.
    own = [list(column) for column in zip(*(node.args[1:] for node in products), strict=True)]
    with graph.inserting_before(products[0]):
        together = graph.call_function(target, (shared, *own))
        together.meta["val"] = [node.meta["val"] for node in products]
        for index, node in enumerate(products):
            result = graph.call_function(operator.getitem, (together, index))
            result.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(result)
    for node in products:
        graph.erase_node(node)
