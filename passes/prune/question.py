"""The question that allocators answer, and what running the network can find out for it."""

from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.passes.prune import allocate
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.choose_entries import without_columns
from tilewright.passes.prune.probe import Constants, Probe
from tilewright.passes.prune.refit import Fit
from tilewright.passes.prune.set_aside import Aside
from tilewright.protocol import Report


class Part(NamedTuple):
    """A removal from some of a layer's rows of tiles, the others left whole.

    `share` is what these rows are of all, by what going tiles are worth. `losses` are the
    squared errors of their outputs without the first 1, 2, ... entries, where those are known.
    """

    without: Callable[[int], Constants]
    share: float
    losses: np.ndarray | None = None


class Removal(NamedTuple):
    """A place, and what the network's constants are without its first so many entries.

    `without` starts from the dense network. Where it takes long to find out, `part` returns
    what to probe instead. Where other places' entries are read by the same layers, through a
    Concat, `columns` are those of each layer's matrix that go with each entry, in order, and
    `fits` what the layers are refitted to, if they are; both by name.
    """

    place: Place
    without: Callable[[int], Constants]
    columns: Mapping[str, np.ndarray] = {}
    fits: Mapping[str, Fit] = {}
    part: Callable[[], Part] | None = None


@dataclass(frozen=True)
class Question:
    """How much to take from each place: what is known, and what can be found out.

    `removals` runs through the network and yields one for each of the places, these very
    objects, in any order. `rankings` are two orders of the entries of each place, by two
    criteria and from the least important on, of which `alpha` is asked. `heal` is what training
    makes of a network, where the pipeline has some.
    """

    places: Sequence[Place]
    removals: Callable[[], Iterator[Removal]]
    dense: Graph
    held: Calibration | None
    sparsity: float
    floor: float
    report: Report
    alpha: float = 0.0
    rankings: Callable[[], Sequence[tuple[np.ndarray, np.ndarray]]] = tuple
    heal: Callable[[Graph], Graph] | None = None
    seed: int = 0

    @cached_property
    def probe(self) -> Probe:
        """The dense network's answers on samples that nothing is fitted to."""
        assert self.held is not None, "check_allocation admits only what asks for no answers"
        layers = {name for place in self.places for name in place.layers}
        return Probe(self.dense, self.held, layers)

    def costs(self) -> list[np.ndarray]:
        """Return for each place the errors of the answers without its entries alone."""

        def of(removal: Removal) -> np.ndarray:
            most = removal.place.most
            if removal.part is None:
                return self.probe.costs(removal.without, most)
            # As if rows of tiles did not disturb each other, like places.
            part = removal.part()
            return self.probe.costs(part.without, most, part.losses) / part.share

        return self._costs(of)

    def healed_costs(self) -> list[np.ndarray]:
        """Return for each place the errors that training leaves of those."""
        assert self.heal is not None, "check_allocation admits only what has no need of it"
        costs = partial(self.probe.costs, healed=self.heal)
        return self._costs(lambda removal: costs(removal.without, removal.place.most))

    def _costs(self, costs: Callable[[Removal], np.ndarray]) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for removal in self.removals():
            self.report(
                f"probing {removal.place.name} ({len(found) + 1} of {len(self.places)})"
            )
            found[id(removal.place)] = costs(removal)
        return [found[id(place)] for place in self.places]

    @cached_property
    def error(self) -> Callable[[Sequence[int]], float]:
        """What the answers are off with so many entries gone from all places at once.

        The numbers are 0 and `counts_of` each place. What the places are then is found out at
        once and kept in a file, so that no more than one place's statistics are in memory; a
        layer that several places take from is refitted anew without what all of them take.
        """
        takers = self._takers()
        solved = Aside(self._alternatives(takers))
        asked: dict[tuple[int, ...], float] = {}

        def of(removed: Sequence[int]) -> float:
            key = tuple(removed)
            if key not in asked:
                changes: dict[str, np.ndarray] = {}
                for place in enumerate(key):
                    changes |= solved.read(place) if place[1] else {}
                # What one place alone leaves of a layer still reads what another takes.
                gone = {
                    name: [solved.read((name, place))[: key[place]] for place in places]
                    for name, places in takers.items()
                    if sum(key[place] > 0 for place in places) > 1
                }
                if gone:
                    changes |= without_columns(self.dense, gone, solved.read)
                asked[key] = self.probe.error_with(changes)
                self.report(
                    f"{len(asked)} ways to share tried, the last is {asked[key]:.4f} off"
                )
            return asked[key]

        return of

    def _takers(self) -> dict[str, list[int]]:
        """Return the layers, by name, that more than one place takes from, and which do."""
        takers: dict[str, list[int]] = {}
        for index, place in enumerate(self.places):
            for name in place.layers:
                takers.setdefault(name, []).append(index)
        return {name: places for name, places in takers.items() if len(places) > 1}

    def _alternatives(self, takers: Container[str]) -> Iterator[tuple[Hashable, Any]]:
        """Yield what each place is without each of its counts, by place and count.

        And of layers that several take from: by layer and place the columns that go with each
        entry, and by layer what it is refitted to, or None.
        """
        indices = {id(place): index for index, place in enumerate(self.places)}
        fitted = set()
        for done, removal in enumerate(self.removals(), 1):
            place, index = removal.place, indices[id(removal.place)]
            self.report(f"pruning {place.name} alone ({done} of {len(self.places)})")
            for count in allocate.counts_of(place):
                yield (index, count), removal.without(count)
            for name, columns in removal.columns.items():
                if name in takers:
                    yield (name, index), columns
                    if name not in fitted:
                        yield name, removal.fits.get(name)
                    fitted.add(name)

    def agreement(self, removed: Sequence[int]) -> float:
        """Return 1 - the error of the answers, relative to how far the dense ones vary."""
        return 1 - self.error(removed)

    def levels(self) -> tuple[list[np.ndarray], list[np.ndarray], float, list[list[int]]]:
        """Return costs, savings, the budget, and the counts of each place's levels."""
        counts = [[0, *allocate.counts_of(place)] for place in self.places]
        costs = [
            np.concatenate([[0.0], cost])[each]
            for cost, each in zip(self.costs(), counts, strict=True)
        ]
        saves = [p.saves * np.array(each) for p, each in zip(self.places, counts, strict=True)]
        return costs, saves, self.budget, counts

    @property
    def budget(self) -> float:
        """What is to be saved in all."""
        return self.sparsity * sum(place.saves * place.entries for place in self.places)
