import gc
import platform
import resource
import weakref
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright import graph as graphs
from tilewright.graph import Graph, saved_bytes
from tilewright.memory import keeping_freed_memory, return_freed_memory

TEXT = "g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"


def test_a_graph_is_let_go_of_only_where_its_weights_are_worth_the_search() -> None:
    gc.disable()
    try:
        # Nodes and tensors refer to each other.
        node = weakref.ref(small_graph(TEXT).nodes[0])
        return_freed_memory(1000)
        assert node() is not None
        return_freed_memory(32 * 1024 * 1024)
        assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("limit", [0, 1 << 27])
def test_the_size_of_a_saved_model_counts_the_weights_beside_it(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_PROTOBUF_BYTES", limit)
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 1024)
    text = "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }"
    graph: Graph = small_graph(text, w=normal(64, 64))
    graph.save(tmp_path / "model.onnx")
    files = list(tmp_path.iterdir())
    assert len(files) == (1 if limit else 2)
    assert saved_bytes(tmp_path / "model.onnx") == sum(f.stat().st_size for f in files)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library decides itself"
)
def test_freed_memory_is_kept_for_as_long_as_it_is_asked_to_be() -> None:
    size = 256 << 20
    before = resident_bytes()
    with keeping_freed_memory():
        np.ones(size, np.uint8)
        assert resident_bytes() - before > size // 2
    assert resident_bytes() - before < size // 2
    np.ones(size, np.uint8)
    assert resident_bytes() - before < size // 2


def resident_bytes() -> int:
    """Return how much memory this process has."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()
