"""Backends that compile nothing: the artifact is run by onnxruntime."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx

from tilewright import oracle
from tilewright.compare import FLOAT32_SLACK
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.measurement import Timer
from tilewright.protocol import (
    HOST,
    Build,
    Estimate,
    Executable,
    Feeds,
    LayerDecision,
    Report,
    Steps,
)
from tilewright.target import Target
from tilewright.timings import Tuning


class Faithful:
    """Gives the answers of model.onnx."""

    name: ClassVar[str] = "faithful"
    slack: ClassVar[float] = FLOAT32_SLACK

    def check(self, target: Target, device: str, tuning: Tuning | None) -> None:
        pass

    def build(
        self,
        graphs: Sequence[Graph],
        target: Target,
        folder: Path,
        report: Report,
        tuning: Tuning | None = None,
    ) -> Build:
        (folder / "weights.bin").write_bytes(
            b"".join(layer.matrix().tobytes() for layer in linear_layers(graphs[0]))
        )
        decisions = tuple(
            LayerDecision(
                layer.name,
                layer.node.op,
                (layer.outputs, layer.inputs, layer.positions),
                str(target.tile_for(layer)),
                np.count_nonzero(layer.matrix()) / layer.matrix().size,
                32,
                layer.matrix().nbytes,
                "dense",
                "it is a test",
            )
            for layer in linear_layers(graphs[0])
        )
        return Build(decisions, (), (folder / "weights.bin").stat().st_size, {})

    def find_device(self, asked: str | None) -> str:
        if asked not in (None, HOST):
            raise UnusableInput(f"--device {asked}: there is none")
        return HOST

    def estimate(self, folder: Path, target: Target, report: Report) -> Estimate | None:
        return None

    def timer(self, folder: Path, feeds: Feeds, threads: int, device: str) -> Timer | None:
        raise AssertionError("HOST is timed beside other engines")

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> Executable:
        session = oracle.session(onnx.load(folder / "model.onnx"), threads)
        return lambda feeds: oracle.outputs_of(session, feeds)

    def steps(
        self,
        graph: Graph,
        target: Target,
        folder: Path,
        feeds: Feeds,
        threads: int,
        device: str,
    ) -> Steps:
        """Claim a microsecond for each weight that is not zero, and ten for the rest."""
        layers = list(linear_layers(graph))
        counts = [1000 * int(np.count_nonzero(layer.matrix())) for layer in layers]
        nodes = [*(frozenset({layer.name}) for layer in layers), frozenset[str]()]
        return Steps(nodes, lambda: [*counts, 10_000])

    def boards(self, device: str) -> int:
        return 1


class Wrong(Faithful):
    """Gives answers that are 1 % too large."""

    name: ClassVar[str] = "wrong"

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> Executable:
        right = super().load(folder, threads, device)

        def run(feeds: Feeds) -> dict[str, np.ndarray]:
            found: Mapping[str, np.ndarray] = right(feeds)
            return {name: values * np.float32(1.01) for name, values in found.items()}

        return run


class Endless(Faithful):
    """Never comes to the end of a build."""

    name: ClassVar[str] = "endless"

    def build(self, graphs: Sequence[Graph], target: Target, folder: Path, *_: object) -> Build:
        (folder / "half.o").touch()
        print("building", file=sys.stderr, flush=True)
        for _tenth in range(600):
            time.sleep(0.1)  # a signal just before a sleep is noticed behind it
        raise AssertionError("the test should have ended this")


class Faulty(Faithful):
    """Has a bug."""

    name: ClassVar[str] = "faulty"

    def build(self, *_: object) -> Build:
        raise IndexError("list index out of range")


BACKENDS = {
    name: f"tests.tools.fake_backends:{name.capitalize()}"
    for name in ("faithful", "wrong", "endless", "faulty")
}
