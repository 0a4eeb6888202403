"""Operators that are not of the ONNX standard, told to onnx so that it infers their shapes."""

import atexit
from threading import Lock

import onnx
from onnx import defs
from onnx.shape_inference import InferenceContext

MICROSOFT = "com.microsoft"


_REGISTERING = Lock()  # two threads may both find that it is not known


def register_schemas() -> None:
    """Make onnx know onnxruntime's MatMulNBits, unless someone else has."""
    with _REGISTERING:
        if not defs.has("MatMulNBits", MICROSOFT):
            defs.register_schema(_matmul_nbits())
            # onnx 1.21 lets our function go when Python has ended, and crashes.
            atexit.register(defs.deregister_schema, "MatMulNBits", 1, MICROSOFT)


def _matmul_nbits() -> defs.OpSchema:
    schema = defs.OpSchema
    parameter, optional = schema.FormalParameter, schema.FormalParameterOption.Optional

    def maybe(name: str, dtype: str) -> defs.OpSchema.FormalParameter:
        return parameter(name, dtype, param_option=optional)

    made = schema(
        "MatMulNBits",
        MICROSOFT,
        1,
        inputs=[
            parameter("A", "T"),
            parameter("B", "tensor(uint8)"),
            parameter("scales", "T"),
            maybe("zero_points", "Z"),
            maybe("g_idx", "tensor(int32)"),
            maybe("bias", "T"),
        ],
        outputs=[parameter("Y", "T")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "floats"),
            ("Z", ["tensor(uint8)", "tensor(float)", "tensor(float16)"], "zero points"),
        ],
        attributes=[
            schema.Attribute(name, schema.AttrType.INT, "", required=required)
            for name, required in (
                ("K", True),
                ("N", True),
                ("block_size", True),
                ("bits", False),
                ("accuracy_level", False),
            )
        ],
    )
    made.set_type_and_shape_inference_function(_rows_become_outputs)
    return made


def _rows_become_outputs(context: InferenceContext) -> None:
    """Y has A's shape, but for its last axis, which has N entries."""
    given = context.get_input_type(0)
    if given is None or not given.tensor_type.shape.dim:
        return
    found = onnx.TypeProto()
    found.CopyFrom(given)
    last = found.tensor_type.shape.dim[-1]
    last.Clear()
    last.dim_value = context.get_attribute("N").i
    context.set_output_type(0, found)
