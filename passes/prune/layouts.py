"""In which tiles each layer is pruned, and how much of it: as a plan or as options say."""

from collections.abc import Sequence

from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.layout import Layout, Pattern, parse_layout
from tilewright.passes.prune.candidates import candidates, cannot_change
from tilewright.passes.prune.choose_tiles import Choice
from tilewright.plan import Plan
from tilewright.protocol import Context, Note

_ROUNDED = 1e-5  # how far plans round shares


def layouts_of(
    graph: Graph,
    context: Context,
    sparsity: float,
    tile: str,
    *,
    ends: bool,
    smallest: int,
    grouped: bool,
    skip: Sequence[str],
) -> tuple[dict[str, Choice], list[Note]]:
    """Return how each layer that may be pruned is, and notes on the others.

    By the plan in the context. Without one `sparsity` of the tiles goes from each of the
    `candidates`, which the rest of the options choose: tiles of the form `tile`, or else the
    target's. Raises UnknownName where `skip` names no layer, and UnusableInput for a plan that
    cannot be applied.
    """
    notes: list[Note] = []
    if context.plan is not None:
        choices = planned_tiles(graph, context.plan)
    else:
        found = candidates(graph, ends=ends, smallest=smallest, grouped=grouped, skip=skip)
        notes += found.notes
        fixed = parse_layout(tile) if tile else None
        tile_for, precision = context.target.tile_for, context.precision
        choices = {
            layer.name: _choice(fixed or tile_for(layer, precision), sparsity)
            for layer in found.layers
        }
    for layer in linear_layers(graph):
        if layer.name in choices:
            gathers = context.target.gathers_rows(layer, context.precision)
            choices[layer.name] = choices[layer.name]._replace(gathers=gathers)
    return choices, notes


def planned_tiles(graph: Graph, plan: Plan) -> dict[str, Choice]:
    """Return tile and sparsity of each layer that a plan prunes.

    Levels without "sparsity" are other passes' and are passed over, but for patterns, which
    have one of their own. Raises one UnusableInput that lists everything wrong with the rest.
    """
    layers = {layer.name: layer for layer in linear_layers(graph)}
    choices: dict[str, Choice] = {}
    wrong: list[str] = []
    for item, level in sorted(plan.levels.items()):
        tile = str(level.get("tile", "1x1"))
        try:
            layout: Layout | None = parse_layout(tile)
        except ValueError:
            layout = None
        own = layout.sparsity if isinstance(layout, Pattern) else None
        sparsity = level.get("sparsity", own)
        if sparsity is None:
            continue
        if item not in layers:
            wrong.append(f'"{item}" is not a linear layer of this model')
        elif reason := cannot_change(graph, layers[item]):
            wrong.append(f'"{item}" cannot be pruned: {reason}')
        elif isinstance(sparsity, str) or not 0 <= sparsity < 1:
            wrong.append(
                f'sparsity of "{item}" is {sparsity!r}, not a number from 0 to below 1'
            )
        elif layout is None:
            wrong.append(f'tile of "{item}" is "{tile}", not like "4x1" or "2:4"')
        elif own is not None and abs(sparsity - own) > _ROUNDED:
            wrong.append(f'sparsity of "{item}" is {sparsity}, but {tile} makes it {own:g}')
        else:
            choices[item] = Choice(layout, float(sparsity))
    if wrong:
        raise UnusableInput(
            f"The plan cannot be applied: {'; '.join(wrong)}. "
            f"Correct it; the model's layers are {', '.join(layers) or 'none'}."
        )
    return choices


def _choice(layout: Layout, sparsity: float) -> Choice:
    return Choice(layout, layout.sparsity if isinstance(layout, Pattern) else sparsity)
