"""Turn scheduled kernels into source code for a device, and the launches that run them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir.instrument import pass_instrument
from tvm.tirx.build import codegen_build, split_host_device_mods

from tilewright.errors import CannotLower
from tilewright.targets.cuda.fragments import with_definition

# Dimensions of a launch, in this order: blocks, then threads of a block.
_TAGS = tuple(f"{kind}Idx.{axis}" for kind in ("block", "thread") for axis in "xyz")


@dataclass(frozen=True)
class Scratch:
    """Memory that a function needs between its kernels."""

    elements: int
    dtype: str


@dataclass(frozen=True)
class Launch:
    """One kernel of a function: its name, its arguments and how many threads run it.

    An argument is a number: of a parameter of the function, or behind those of its scratch.
    """

    kernel: str
    arguments: tuple[int, ...]
    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]


@dataclass(frozen=True)
class Function:
    """What a call of a scheduled PrimFunc runs."""

    launches: tuple[Launch, ...]
    scratch: tuple[Scratch, ...]


@dataclass(frozen=True)
class Source:
    """Kernels as source code, and the functions that launch them."""

    text: str
    functions: Mapping[str, Function]


def write_source(functions: Mapping[str, Any], target: Any) -> Source:
    """Return the kernels of scheduled PrimFuncs in the language of a TVM target."""
    bound = target.with_host(tvm.target.Target("llvm"))
    module = tvm.IRModule(
        {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    )
    module = tirx.transform.BindTarget(bound)(module)
    pipeline, _, finish = tirx.get_default_tir_pipeline(target)
    before = _BeforePackedApi()
    with tvm.transform.PassContext(instruments=[before]):
        module = pipeline(module)
    _, devices = split_host_device_mods(module)
    ((device, kernels),) = devices.items()
    written = codegen_build(finish()(kernels), device).inspect_source()
    text = with_definition(written, str(device.kind.name))
    launched = {name: _function(before.module[name]) for name in functions}
    return Source(text, launched)


@pass_instrument
class _BeforePackedApi:
    """Keeps the module whose host functions still call kernels on their own buffers."""

    def run_before_pass(self, module: Any, info: Any) -> None:
        if info.name == "tirx.MakePackedAPI":
            self.module = module


def _function(host: Any) -> Function:
    numbers = {buffer: number for number, buffer in enumerate(host.params)}
    scratch: list[Scratch] = []
    launches = []
    for statement in _statements(host.body):
        if isinstance(statement, tirx.DeclBuffer):
            numbers[statement.buffer] = numbers[statement.data.args[0]]
        elif isinstance(statement, tirx.AllocBuffer):
            numbers[statement.buffer] = len(host.params) + len(scratch)
            scratch.append(_scratch(statement.buffer))
        elif isinstance(statement, tirx.Evaluate) and _launches(statement.value):
            launches.append(_launch(statement.value, numbers))
        else:
            raise AssertionError(f"a host function does more than launch: {statement}")
    return Function(tuple(launches), tuple(scratch))


def _statements(body: Any) -> Iterator[Any]:
    if isinstance(body, tirx.SeqStmt):
        for statement in body.seq:
            yield from _statements(statement)
    elif isinstance(body, tirx.AttrStmt):
        yield from _statements(body.body)
    else:
        yield body


def _launches(value: Any) -> bool:
    return getattr(getattr(value, "op", None), "name", "") == "tirx.call_ffi_kernel"


def _launch(call: Any, numbers: Mapping[Any, int]) -> Launch:
    tags = [str(tag) for tag in call.attrs.launch_params]
    behind = len(call.args) - len(tags)
    extents = dict(zip(tags, map(int, call.args[behind:]), strict=True))
    assert set(tags) <= set(_TAGS), f"{call} needs {tags}"
    sizes = [extents.get(tag, 1) for tag in _TAGS]
    name, arguments = str(call.args[0].value), call.args[1:behind]
    if not all(hasattr(argument, "args") for argument in arguments):
        raise CannotLower(
            f'The gpu target cannot launch "{name}", as TVM calls what it makes of a node: it '
            "takes more than arrays, as those of ScatterND do. Compile for cpu, or change the "
            "model so that it needs none."
        )
    return Launch(
        name,
        tuple(numbers[argument.args[0]] for argument in arguments),
        (sizes[0], sizes[1], sizes[2]),
        (sizes[3], sizes[4], sizes[5]),
    )


def _scratch(buffer: Any) -> Scratch:
    elements = 1
    for extent in buffer.shape:
        elements *= int(extent)
    return Scratch(elements, str(buffer.dtype))
