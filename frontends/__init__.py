"""Frontends: everything that ends in a Graph or in calibration data."""

# What a model may be given as -> the function that reads it.
READERS: dict[str, str] = {
    ".onnx": "tilewright.frontends.onnx_file:read_onnx",
    "torch": "tilewright.frontends.torch_module:from_torch",
}
