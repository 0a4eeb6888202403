"""Read a PyTorch module by exporting it to ONNX; needs the extra [torch]."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import UnusableInput
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph

if TYPE_CHECKING:
    import torch


def from_torch(
    module: "torch.nn.Module",
    args: tuple[Any, ...],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = 20,
) -> Graph:
    """Return the graph of a module in evaluation mode, with the shapes of `args`.

    Raises UnusableInput where PyTorch is missing or cannot export the module.
    """
    try:
        import onnxscript  # noqa: F401  torch.onnx imports it, late and with less to say
        import torch
    except ImportError as error:
        raise UnusableInput(
            f"from_torch needs the package {error.name}, which is not installed. "
            "Run: pip install 'tilewright[torch]'"
        ) from error
    was_training = module.training
    module.eval()
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                module,
                args,
                path,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset,
                dynamo=True,
                external_data=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UnusableInput(
                f"torch.onnx cannot export {type(module).__name__}: {error}"
            ) from error
        finally:
            module.train(was_training)
        # Mapped weights stay readable after their file's name is gone.
        return read_onnx(path)
