"""Flatten a lowered module into launches on two memories: an arena, and the weights."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import GenericConst

from tilewright.errors import CannotLower
from tilewright.targets.arena import place
from tilewright.targets.cuda.constants import values_of
from tilewright.targets.cuda.executor import ALIGNMENT, ARENA, WEIGHTS
from tilewright.targets.cuda.launches import Function, Launch
from tilewright.targets.cuda.shapes import tensor_shape


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory of a tensor; with `values`, a constant."""

    bytes: int
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Tensor:
    """A tensor in a buffer, from its first byte on."""

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Step:
    """A launch of a function, and the buffers that are its arguments."""

    function: str
    launch: Launch
    arguments: tuple[Buffer, ...]


@dataclass
class Program:
    """A model as launches, one behind the other; `calls` are of the functions they are of."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    # Inputs that pick entries of a table, and how many the smallest such table has.
    entries: Mapping[str, int] = field(default_factory=dict)


class Weights:
    """Constants of some programs, one behind the other; equal ones once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._arrays: list[np.ndarray] = []
        self._starts: dict[tuple[str, bytes], int] = {}

    def at(self, values: np.ndarray) -> int:
        """Return where a constant lies, in bytes, and keep it."""
        values = np.ascontiguousarray(values)
        key = (values.dtype.name, hashlib.sha256(values.tobytes()).digest())
        if key not in self._starts:
            self._starts[key] = self.bytes
            self._arrays.append(values)
            self.bytes += _aligned(values.nbytes)
        return self._starts[key]

    def pieces(self) -> Iterator[bytes]:
        """Yield the constants and the gaps behind them, in order."""
        for values in self._arrays:
            yield values.tobytes()
            yield bytes(_aligned(values.nbytes) - values.nbytes)


def flatten(
    module: Any,
    functions: Mapping[str, Function],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Program:
    """Return the launches of a module's main function, whose ends have these names.

    Raises CannotLower for what only TVM's virtual machine could run.
    """
    main = module["main"]
    program = Program()
    values: dict[Any, Any] = {}
    for name, parameter in zip(inputs, main.params, strict=True):
        values[parameter] = program.inputs[name] = _new(parameter.ty)
    walk = _Walk(functions, values, program)
    for block in main.body.blocks:
        for binding in block.bindings:
            values[binding.var] = walk.value(binding.value)
    result = walk.value(main.body.body)
    results = result if isinstance(result, list) else [result]
    program.outputs.update(zip(outputs, results, strict=True))
    return program


class _Walk:
    def __init__(
        self, functions: Mapping[str, Function], values: dict[Any, Any], program: Program
    ) -> None:
        self._functions, self._values, self._program = functions, values, program

    def value(self, expression: Any) -> Any:
        """Return the tensor, or the list of them, that an expression is."""
        if isinstance(expression, relax.Var):
            return self._values[expression]
        if isinstance(expression, GenericConst):
            array = values_of(expression)
            return Tensor(Buffer(array.nbytes, array), array.shape, array.dtype.name)
        if isinstance(expression, relax.Tuple):
            return [self.value(part) for part in expression.fields]
        if isinstance(expression, relax.TupleGetItem):
            return self.value(expression.tuple_value)[expression.index]
        name = getattr(getattr(expression, "op", None), "name", type(expression).__name__)
        if name == "relax.call_tir":
            return self._call(expression)
        if name == "relax.reshape":
            given = self.value(expression.args[0])
            return Tensor(given.buffer, _shape(expression), given.dtype)
        raise CannotLower(
            f"The gpu target has no kernel for what TVM calls {name}: only its virtual machine "
            "runs that. Compile for cpu, or change the model so that it needs none."
        )

    def _call(self, call: Any) -> Any:
        name = str(call.args[0].name_hint)
        function = self._functions[name]
        self._program.calls.append(name)
        arguments = self.value(call.args[1])
        (kind,) = call.ty_args
        several = hasattr(kind, "fields")
        results = [_new(part) for part in (kind.fields if several else [kind])]
        scratch = [Buffer(s.elements * np.dtype(s.dtype).itemsize) for s in function.scratch]
        buffers = [tensor.buffer for tensor in (*arguments, *results)] + scratch
        for launch in function.launches:
            given = tuple(buffers[number] for number in launch.arguments)
            self._program.steps.append(Step(name, launch, given))
        return results if several else results[0]


def described(program: Program, weights: Weights) -> tuple[dict[str, Any], int]:
    """Return a program as JSON with every buffer's place, and the bytes of its arena."""
    lives = _lives(program)
    offsets, size = place(lives, {buffer: _aligned(buffer.bytes) for buffer in lives})

    def at(buffer: Buffer) -> list[Any]:
        if buffer.values is not None:
            return [WEIGHTS, weights.at(buffer.values), buffer.bytes]
        return [ARENA, offsets[buffer], buffer.bytes]

    def shown(tensor: Tensor) -> dict[str, Any]:
        return {"at": at(tensor.buffer), "shape": tensor.shape, "dtype": tensor.dtype}

    content = {
        "inputs": {name: shown(tensor) for name, tensor in program.inputs.items()},
        "outputs": {name: shown(tensor) for name, tensor in program.outputs.items()},
        "entries": program.entries,
        "launches": [
            {
                "kernel": step.launch.kernel,
                "blocks": step.launch.blocks,
                "threads": step.launch.threads,
                "arguments": [at(buffer) for buffer in step.arguments],
            }
            for step in program.steps
        ],
    }
    return content, size


def _lives(program: Program) -> dict[Buffer, tuple[int, int]]:
    lives: dict[Buffer, tuple[int, int]] = {}

    def touch(buffer: Buffer, when: int) -> None:
        if buffer.values is None:
            first, last = lives.get(buffer, (when, when))
            lives[buffer] = (min(first, when), max(last, when))

    end = len(program.steps)
    for tensor in program.inputs.values():
        touch(tensor.buffer, -1)
        # Launches that are timed again and again find the same inputs each time.
        touch(tensor.buffer, end)
    for when, step in enumerate(program.steps):
        for buffer in step.arguments:
            touch(buffer, when)
    for tensor in program.outputs.values():
        touch(tensor.buffer, end)
    return lives


def _new(kind: Any) -> Tensor:
    dtype, shape = str(kind.dtype), _extents(kind)
    return Tensor(Buffer(math.prod(shape) * np.dtype(dtype).itemsize), shape, dtype)


def _extents(kind: Any) -> tuple[int, ...]:
    return tuple(int(extent) for extent in kind.shape.values)


def _shape(expression: Any) -> tuple[int, ...]:
    shape = tensor_shape(expression)
    assert shape is not None, f"{expression} has no fixed shape"
    return shape


def _aligned(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
