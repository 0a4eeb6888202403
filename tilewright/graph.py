"""Graph: an ONNX model in memory, with read-only weights and a networkx view.

The structure is an `onnx_graphsurgeon.Graph`. Weights are numpy arrays that cannot be written
to: a pass replaces an array, it never edits one, so graphs may share weights freely.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tilewright.schemas import register_schemas

# Initializers above this size stay out of protobuf messages, whose limit is 2 GiB in all.
EXTERNAL_BYTES = 1 << 20
_PROTOBUF_BYTES = 1 << 27


@dataclass(frozen=True, eq=False)
class Graph:
    """A model: read it through the methods, change it through `edit()`.

    `metadata` holds the model's key-value properties (label lists, for one).
    """

    gs: gs.Graph
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_onnx(cls, model: onnx.ModelProto) -> "Graph":
        """Import a model whose weights are inside the message (frontends read files)."""
        imported = gs.import_onnx(model)
        graph = cls(imported, {p.key: p.value for p in model.metadata_props})
        name_nodes(imported)
        for scope in graph.scopes():
            if scope.import_domains:
                # A part of a message keeps the whole of it alive, weights and all.
                scope.import_domains = [
                    onnx.helper.make_opsetid(d.domain, d.version) for d in scope.import_domains
                ]
            _constant_nodes_to_initializers(scope)
            for tensor in scope.tensors().values():
                if isinstance(tensor, gs.Constant):
                    freeze(tensor)
        return graph

    def edit(self) -> "Graph":
        """Return a copy that may be changed: nodes and attributes are new, weights shared."""
        duplicate = self.gs.copy()
        for scope in _scopes(duplicate):
            for node in scope.nodes:
                for key, value in node.attrs.items():
                    if not isinstance(value, gs.Graph | gs.Tensor):
                        node.attrs[key] = copy.deepcopy(value)
            for tensor in scope.tensors().values():
                if isinstance(tensor, gs.Variable) and tensor.shape is not None:
                    tensor.shape = list(tensor.shape)
        return Graph(duplicate, dict(self.metadata))

    def scopes(self) -> Iterator[gs.Graph]:
        """Walk the main graph and every subgraph (`If` branches, `Loop` bodies)."""
        return _scopes(self.gs)

    @property
    def nodes(self) -> list[gs.Node]:
        """Nodes of the main graph, as stored."""
        return list(self.gs.nodes)

    @property
    def inputs(self) -> list[gs.Variable]:
        """What a caller feeds."""
        return list(self.gs.inputs)

    @property
    def outputs(self) -> list[gs.Variable]:
        """What a caller gets."""
        return list(self.gs.outputs)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return int(self.gs.opset)

    def constants(self) -> dict[str, np.ndarray]:
        """Weights of the main graph by name, read-only."""
        return {
            name: tensor.values
            for name, tensor in self.gs.tensors().items()
            if isinstance(tensor, gs.Constant)
        }

    def dag(self) -> nx.DiGraph:
        """Return node names with an edge, labelled by tensor, from producer to consumer."""
        view = nx.DiGraph()
        for node in self.gs.nodes:
            view.add_node(node.name, op=node.op)
        for node in self.gs.nodes:
            for tensor in _read_by(node):
                for producer in tensor.inputs:
                    if producer.name in view:
                        view.add_edge(producer.name, node.name, tensor=tensor.name)
        return view

    def sorted(self) -> "Graph":
        """Put nodes into an order in which every tensor is written before it is read."""
        self.gs.toposort(recurse_subgraphs=True)
        return self

    def weight_bytes(self) -> int:
        """Size of all weights of the main graph."""
        return sum(values.nbytes for values in self.constants().values())

    def to_onnx(self) -> onnx.ModelProto:
        """Export one self-contained message. For models near 2 GiB use `save`."""
        return self._with_metadata(gs.export_onnx(self.gs, do_type_check=False))

    def skeleton(self) -> onnx.ModelProto:
        """Export without the large weights, which become inputs: for shape inference."""
        return self._without_large_weights()[0]

    def save(self, path: Path) -> None:
        """Write `path`; above 128 MiB of weights also `path`.data, streamed, not copied whole.

        The bytes depend on the graph alone.
        """
        if self.weight_bytes() < _PROTOBUF_BYTES:
            path.write_bytes(self.to_onnx().SerializeToString(deterministic=True))
            return
        model, large = self._without_large_weights()
        side = _beside(path)
        names = {tensor.name for tensor in large}
        kept = [info for info in model.graph.input if info.name not in names]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        with side.open("wb") as out:
            for tensor in large:
                out.write(b"\0" * (-out.tell() % 4096))
                model.graph.initializer.append(_external(tensor, side.name, out.tell()))
                out.write(np.ascontiguousarray(tensor.values).data)
        path.write_bytes(model.SerializeToString(deterministic=True))

    def infer_shapes(self) -> "Graph":
        """Fill in what the operator definitions say of shapes and dtypes, in place."""
        register_schemas()
        inferred = onnx.shape_inference.infer_shapes(
            self.skeleton(), strict_mode=False, data_prop=True
        )
        tensors = self.gs.tensors()
        for info in [*inferred.graph.value_info, *inferred.graph.output]:
            tensor = tensors.get(info.name)
            if isinstance(tensor, gs.Variable) and info.type.HasField("tensor_type"):
                _note_type(tensor, info.type.tensor_type)
        return self

    def __str__(self) -> str:
        """Return one line a node: a text that can be diffed."""
        lines = [f"{_typed(t)} = input" for t in self.gs.inputs]
        for node in self.gs.nodes:
            outs = ", ".join(_typed(t) for t in node.outputs if t.name)
            ins = ", ".join(_argument(t) for t in node.inputs)
            lines.append(f"{outs} = {node.op}({ins}){_attributes(node)}")
        lines.append(f"return {', '.join(t.name for t in self.gs.outputs)}")
        return "\n".join(lines) + "\n"

    def _with_metadata(self, model: onnx.ModelProto) -> onnx.ModelProto:
        onnx.helper.set_model_props(model, dict(self.metadata))
        return model

    def _without_large_weights(self) -> tuple[onnx.ModelProto, list[gs.Constant]]:
        duplicate = self.gs.copy()
        copies = duplicate.tensors()
        large: list[gs.Constant] = []
        for name, tensor in self.gs.tensors().items():
            if isinstance(tensor, gs.Constant) and tensor.values.nbytes >= EXTERNAL_BYTES:
                large.append(tensor)
                values = tensor.values
                variable = copies[name].to_variable(values.dtype, values.shape)
                variable.type = "tensor_type"  # to_variable leaves it out; exporting reads it
                duplicate.inputs.append(variable)
        return self._with_metadata(gs.export_onnx(duplicate, do_type_check=False)), large


def saved_bytes(path: Path) -> int:
    """Size of a model that `Graph.save` wrote, with the weights beside it."""
    return sum(p.stat().st_size for p in (path, _beside(path)) if p.exists())


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def freeze(tensor: gs.Constant) -> gs.Constant:
    """Make a constant's values an array that cannot be written to."""
    values = tensor.values
    if values.flags.writeable:
        values.flags.writeable = False
    return tensor


def constant(name: str, values: np.ndarray) -> gs.Constant:
    """Return a new read-only weight."""
    values = np.asarray(values, order="C").view()  # a scalar stays one
    values.flags.writeable = False
    return gs.Constant(name, values)


def is_constant(tensor: gs.Tensor) -> bool:
    """Say whether a tensor's values are known at compile time."""
    return isinstance(tensor, gs.Constant)


def static_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """Return a tensor's shape, or None while any dimension is unknown."""
    shape = tensor.shape
    if shape is None or not all(isinstance(d, int | np.integer) and d >= 0 for d in shape):
        return None
    return tuple(int(d) for d in shape)


def with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    """Return the graph with these of its tensors as its only outputs."""
    edited = graph.edit()
    tensors = edited.gs.tensors()
    edited.gs.outputs = [tensors[name] for name in names]
    return edited


def with_inputs(graph: Graph, names: Sequence[str]) -> Graph:
    """Return the graph with these of its constants as inputs, behind those it has."""
    edited = graph.edit()
    tensors = edited.gs.tensors()
    inputs = {
        name: gs.Variable(name, tensors[name].values.dtype, list(tensors[name].values.shape))
        for name in names
    }
    for scope in edited.scopes():
        for node in scope.nodes:
            node.inputs = [inputs.get(tensor.name, tensor) for tensor in node.inputs]
        scope.outputs = [inputs.get(tensor.name, tensor) for tensor in scope.outputs]
    edited.gs.inputs.extend(inputs.values())
    return edited


def name_nodes(graph: gs.Graph) -> None:
    """Give every node a name of its own, kept where it already has one."""
    taken = {node.name for scope in _scopes(graph) for node in scope.nodes if node.name}
    seen: set[str] = set()
    for scope in _scopes(graph):
        for index, node in enumerate(scope.nodes):
            if not node.name or node.name in seen:
                stem = node.name or node.op
                count = index
                while f"{stem}_{count}" in taken:
                    count += 1
                node.name = f"{stem}_{count}"
                taken.add(node.name)
            seen.add(node.name)


def _scopes(graph: gs.Graph) -> Iterator[gs.Graph]:
    yield graph
    yield from graph.subgraphs(recursive=True)


def _read_by(node: gs.Node) -> Iterator[gs.Tensor]:
    yield from node.inputs
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield from value._foreign_tensors().values()  # outer tensors a branch reads


def _constant_nodes_to_initializers(scope: gs.Graph) -> None:
    for node in list(scope.nodes):
        if node.op != "Constant" or node.domain not in (None, "", "ai.onnx"):
            continue
        values = _constant_node_values(node)
        if values is None:
            continue
        out = node.outputs[0]
        node.outputs.clear()
        out.to_constant(values)
        scope.nodes.remove(node)


def _constant_node_values(node: gs.Node) -> np.ndarray | None:
    kinds: dict[str, Any] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for key, value in node.attrs.items():
        if key == "value":
            return np.asarray(value.values)
        if key in kinds:
            return np.asarray(value, dtype=kinds[key])
    return None


def _external(tensor: gs.Constant, location: str, offset: int) -> onnx.TensorProto:
    proto = onnx.TensorProto(
        name=tensor.name,
        data_type=onnx.helper.np_dtype_to_tensor_dtype(tensor.values.dtype),
        dims=tensor.values.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    entries = {"location": location, "offset": offset, "length": tensor.values.nbytes}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


def _note_type(tensor: gs.Variable, kind: onnx.TypeProto.Tensor) -> None:
    if tensor.dtype is None and kind.elem_type:
        tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if not kind.HasField("shape"):
        return
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
    if static_shape(tensor) is None:
        tensor.shape = shape


def _typed(tensor: gs.Tensor) -> str:
    if tensor.shape is None or tensor.dtype is None:
        return str(tensor.name)
    shape = "x".join(str(d) for d in tensor.shape) or "scalar"
    return f"{tensor.name}:{shape}:{np.dtype(tensor.dtype).name}"


def _argument(tensor: gs.Tensor) -> str:
    if not isinstance(tensor, gs.Constant):
        return tensor.name or "-"
    values = tensor.values
    if values.size <= 4:
        return f"{values.dtype.name}{values.tolist()}"
    zeros = 1 - np.count_nonzero(values) / values.size
    return f"{tensor.name}[{'x'.join(map(str, values.shape))} {zeros:.0%} zeros]"


def _attributes(node: gs.Node) -> str:
    if not node.attrs:
        return ""
    items = ", ".join(f"{k}={_attribute(v)}" for k, v in sorted(node.attrs.items()))
    return f" {{{items}}}"


def _attribute(value: object) -> str:
    if isinstance(value, gs.Graph):
        return f"<{len(value.nodes)} nodes>"
    if isinstance(value, gs.Tensor):
        return _argument(value)
    return str(value)
