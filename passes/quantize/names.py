"""Names for what quantizing adds to a graph."""

from tilewright.graph import Graph


def free_stem(graph: Graph, name: str) -> str:
    """Return a name that no other tensor's or node's begins with, but for `name` itself."""
    taken = {t for scope in graph.scopes() for t in scope.tensors()}
    taken |= {str(node.name) for scope in graph.scopes() for node in scope.nodes}
    while any(other.startswith(f"{name}/") for other in taken):
        name += "_"
    return name
