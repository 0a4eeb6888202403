"""A small trained network for what only a trained one can show, in numpy."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tests.small_models import small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.graph import Graph

Labelled = tuple[np.ndarray, np.ndarray]


class Perceptron(NamedTuple):
    """ReLU between layers; weights are (outputs, inputs)."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def activations(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the input, the hidden layers and the logits, each (samples, units)."""
        found = [x]
        for weights, bias in zip(self.weights, self.biases, strict=True):
            found.append(np.maximum(found[-1] @ weights.T + bias, 0))
        found[-1] = found[-2] @ self.weights[-1].T + self.biases[-1]
        return found

    def accuracy(self, x: np.ndarray, labels: np.ndarray) -> float:
        return float((self.activations(x)[-1].argmax(axis=1) == labels).mean())

    def gradients(self, x: np.ndarray, labels: np.ndarray) -> list[Labelled]:
        """Return the gradients of the mean cross-entropy by weights and bias."""
        *inputs, logits = self.activations(x)
        slope = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope /= slope.sum(axis=1, keepdims=True)
        slope[np.arange(len(x)), labels] -= 1
        slope /= len(x)
        found = []
        for weights, read in zip(self.weights[::-1], inputs[::-1], strict=True):
            found.append((slope.T @ read, slope.sum(axis=0)))
            slope = (slope @ weights) * (read > 0)
        return found[::-1]

    def without(self, gone: Sequence[np.ndarray]) -> "Perceptron":
        """Return the network with hidden units taken out."""
        weights, biases = list(self.weights), list(self.biases)
        for layer, units in enumerate(gone):
            weights[layer] = np.delete(weights[layer], units, axis=0)
            biases[layer] = np.delete(biases[layer], units)
            weights[layer + 1] = np.delete(weights[layer + 1], units, axis=1)
        return Perceptron(weights, biases)

    def masked(self, gone: Sequence[np.ndarray]) -> "Perceptron":
        """Return the network with the same hidden units at zero, biases too."""
        weights, biases = [w.copy() for w in self.weights], [b.copy() for b in self.biases]
        for layer, units in enumerate(gone):
            weights[layer][units] = biases[layer][units] = 0
        return Perceptron(weights, biases)

    def size(self) -> int:
        """Return the number of parameters."""
        return sum(values.size for values in (*self.weights, *self.biases))


def modes(
    samples: int, seed: int, classes: int = 4, each: int = 3, features: int = 12
) -> Labelled:
    """Return samples of classes that are `each` clouds, scattered among each other's.

    The clouds are the same for every seed, the samples are not.
    """
    centres = np.random.default_rng(0).normal(size=(classes * each, features))
    r = np.random.default_rng(seed)
    cloud = r.integers(len(centres), size=samples)
    return centres[cloud] + 0.5 * r.normal(size=(samples, features)), cloud % classes


def trained(
    widths: Sequence[int], data: Labelled, seed: int, steps: int = 600, decay: float = 0.0
) -> Perceptron:
    """Train a network on samples of 64 with AdamW (rate 0.005)."""
    r = np.random.default_rng(seed)
    sizes = [data[0].shape[1], *widths, int(data[1].max()) + 1]
    net = Perceptron(
        [
            r.normal(size=(after, before)) * np.sqrt(2 / before)
            for before, after in pairwise(sizes)
        ],
        [np.zeros(width) for width in sizes[1:]],
    )
    values = [*net.weights, *net.biases]
    mean, square = [np.zeros_like(v) for v in values], [np.zeros_like(v) for v in values]
    for step in range(1, steps + 1):
        batch = r.integers(len(data[0]), size=64)
        found = net.gradients(data[0][batch], data[1][batch])
        for i, g in enumerate([w for w, _ in found] + [b for _, b in found]):
            mean[i] += 0.1 * (g - mean[i])
            square[i] += 0.001 * (g * g - square[i])
            corrected = mean[i] / (1 - 0.9**step)
            values[i] *= 1 - 0.005 * decay
            values[i] -= 0.005 * corrected / (np.sqrt(square[i] / (1 - 0.999**step)) + 1e-8)
    return net


def as_graph(net: Perceptron, rows: int) -> Graph:
    """Return the network as a graph whose x and y are (rows, features) and (rows, classes)."""
    last = len(net.weights) - 1
    text, source = "", "x"
    for layer in range(last):
        text += f"a{layer} = Gemm<transB=1>({source}, w{layer}, b{layer}) "
        source = f"r{layer}"
        text += f"{source} = Relu(a{layer}) "
    text += f"y = Gemm<transB=1>({source}, w{last}, b{last})"
    features, classes = net.weights[0].shape[1], len(net.weights[-1])
    arrays = {f"w{i}": w.astype(np.float32) for i, w in enumerate(net.weights)}
    arrays |= {f"b{i}": b.astype(np.float32) for i, b in enumerate(net.biases)}
    signature = f"g (float[{rows},{features}] x) => (float[{rows},{classes}] y)"
    return small_graph(f"{signature} {{ {text} }}", **arrays)


def unlabelled(graph: Graph, x: np.ndarray) -> Calibration:
    """Return samples as calibration data of a graph that reads several of them at once."""
    rows, features = graph.inputs[0].shape
    feeds = x.astype(np.float32).reshape(-1, rows, features)
    return Calibration.from_arrays({"x": feeds}, graph.inputs)


def accuracy(graph: Graph, data: Labelled) -> float:
    """Return the share of samples whose largest logit is that of their class."""
    session = oracle.session(graph, threads=1)
    feeds = unlabelled(graph, data[0]).feeds()
    logits = np.concatenate([oracle.outputs_of(session, feed)["y"] for feed in feeds])
    return float((logits.argmax(axis=1) == data[1]).mean())
