import numpy as np
import pytest

from tilewright import oracle
from tilewright.errors import UnusableInput
from tilewright.frontends.torch_module import from_torch

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
pytest.importorskip("onnxscript", reason="needs the extra [torch]")

# torch.onnx's own code and the libraries under it warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_module_becomes_a_graph_with_the_same_answers() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.ReLU())
    x = torch.randn(2, 8)
    graph = from_torch(module, (x,), input_names=["x"], output_names=["y"])
    assert module.training
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    found = oracle.run(graph, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 sums of eight products


def test_a_module_that_cannot_be_exported_is_one_message() -> None:
    class Odd(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: object) -> object:
            raise RuntimeError("this module does not run")

    with pytest.raises(UnusableInput, match=r"torch.onnx cannot export Odd"):
        from_torch(Odd(), (torch.randn(1),))
