"""Criteria by name: what each looks at, and who published it.

"obs" is not a score but a search (joint.py, obs.py). What the others say of channels is
computed in score_entries.py, of single weights in score_weights.py, on the dense network.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tilewright.autograd import require_torch
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.passes.prune.pseudo_labels import sample_scores
from tilewright.protocol import Context, Note

OBS = "obs"


class Criterion(NamedTuple):
    """How importance is judged, from what, and by which passes.

    `needs` are "examples" (inputs), "gradients" (torch, and a network that it covers) and
    "classes" (an output of class scores, for pseudo_labels.py).
    """

    about: str
    source: str
    needs: tuple[str, ...]
    passes: tuple[str, ...]


CRITERIA: Mapping[str, Criterion] = {
    "obs": Criterion(
        about="Least change of what the readers give once they are refitted, greedily.",
        source='Frantar & Alistarh, "Optimal Brain Compression" (2022)',
        needs=("examples",),
        passes=("prune-channels", "prune-tiles", "match-tiles"),
    ),
    "magnitude": Criterion(
        about="Squared sum of the weights themselves, of channels those that read them.",
        source='Han et al., "Learning both Weights and Connections" (2015)',
        needs=(),
        passes=("prune-channels", "prune-tiles", "match-tiles"),
    ),
    "l2": Criterion(
        about="L2 norm of the filters that write a channel.",
        source='Li et al., "Pruning filters for efficient ConvNets" (2017)',
        needs=(),
        passes=("prune-channels",),
    ),
    "taylor": Criterion(
        about="First-order change of the loss without the weights, by pseudo-labels.",
        source='Molchanov et al., "Importance estimation for neural network pruning" (2019)',
        needs=("examples", "gradients"),
        passes=("prune-channels", "prune-tiles"),
    ),
    "leverage": Criterion(
        about="Ridge leverage of what is read: how little the other inputs can stand in.",
        source='Chiang et al., "UniQL" (2025)',
        needs=("examples",),
        passes=("prune-channels", "prune-tiles"),
    ),
    "utilization": Criterion(
        about="Wasserstein distance between classes in what a channel holds (U-score).",
        source='Lin et al., "FAIR-Pruner" (2025)',
        needs=("examples", "classes"),
        passes=("prune-channels",),
    ),
    "reconstruction": Criterion(
        about="Signed sum of weights times gradients of the filters that write (R-score).",
        source='Lin et al., "FAIR-Pruner" (2025)',
        needs=("examples", "gradients", "classes"),
        passes=("prune-channels",),
    ),
    "discrimination": Criterion(
        about="Greedy choice by reconstruction and by how well a head tells the classes.",
        source='Zhuang et al., "Discrimination-aware Channel Pruning" (2018)',
        needs=("examples", "classes"),
        passes=("prune-channels",),
    ),
}


def criteria_of(name: str) -> list[str]:
    """Return the criteria that a pass knows, the default first."""
    return [each for each, criterion in CRITERIA.items() if name in criterion.passes]


def without_data(
    name: str, criterion: str, layers: Sequence[str], context: Context
) -> tuple[str, list[Note]]:
    """Return what a pass goes by, and a note for each layer where that is not what was asked.

    Without calibration data that is "magnitude" in place of "obs", which is reported, too.
    """
    if context.calibration is not None or criterion != OBS:
        return criterion, []
    if layers:
        context.report(
            f"{name}: no calibration data, so what goes is chosen by magnitude and nothing is "
            "refitted; expect the answers to change a lot. Give --calibration FILE.npz."
        )
    reason = "pruned by magnitude and not refitted: there is no calibration data"
    return "magnitude", [Note(layer, reason) for layer in layers]


def check_criterion(name: str, criterion: str, context: Context) -> None:
    """Raise UnusableInput where a criterion has not the data or torch that it needs.

    "obs" goes without (`without_data`).
    """
    needs = CRITERIA[criterion].needs
    asked = f"{name}: criterion={criterion}"
    if "examples" in needs and context.calibration is None and criterion != OBS:
        raise UnusableInput(
            f"{asked} looks at what the network does on example inputs, and there are none. "
            "Give --calibration FILE.npz, or choose criterion=magnitude."
        )
    if "gradients" in needs:
        require_torch(asked)


def check_classes(name: str, criterion: str, graph: Graph) -> None:
    """Raise UnusableInput where a criterion compares classes, and a network has none."""
    if "classes" in CRITERIA[criterion].needs and sample_scores(graph) is None:
        outputs = ", ".join(f'"{t.name}" {t.shape}' for t in graph.outputs)
        raise UnusableInput(
            f"{name}: criterion={criterion} compares classes, and no output has the form of "
            "class scores: (1, classes), written by a linear layer. The model's are "
            f"{outputs}. Choose obs, taylor or leverage."
        )
