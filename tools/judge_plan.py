"""Judge plans: prune and refit a model for real, compare its answers, time it on the device."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewright import artifact
from tilewright.answers import Agreement
from tilewright.graph import Graph
from tilewright.plan import Plan
from tilewright.tools.search_subject import Subject

_DENSE = Plan()


class PlanJudge:
    """Says what plans do to a network; what was found once is kept and not asked again."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        """Do nothing yet; what is built lies in `folder`."""
        self._subject = subject
        self._folder = folder
        self._latest: tuple[str, Graph] | None = None

    def agreement(self, plan: Plan) -> Agreement:
        """Return how well the answers of the pruned and refitted network agree."""
        item = f"agreement of {plan}"
        found = self._subject.of_answers.find(item)
        if found is None:
            found = self._subject.answers.agreement(self._pruned(plan))
            self._subject.of_answers.keep(item, found)
            self._subject.report(f"the answers of this plan agree to {found[0]:.4f}")
        return Agreement(*found)

    def latency(self, plan: Plan) -> Mapping[str, Any]:
        """Return the figures of `Samples.as_json` of the model that is built by a plan.

        "dense" holds those of the model without pruning, timed in turns with it: a machine
        changes its speed from one hour to the next.
        """
        item = f"latency of {plan}"
        found: dict[str, Any] | None = self._subject.of_times.find(item)
        if found is None:
            models = {"dense": self._built(_DENSE), "pruned": self._built(plan)}
            if plan == _DENSE:
                del models["pruned"]
            taken = {n: s.as_json() for n, s in self._subject.time(models).items()}
            found = {**taken.get("pruned", taken["dense"]), "dense": taken["dense"]}
            self._subject.of_times.keep(item, found)
            # The latest times of the dense model are those to compare with.
            dense = {**found["dense"], "dense": found["dense"]}
            self._subject.of_times.keep(f"latency of {_DENSE}", dense)
        self._subject.report(
            f"this plan takes {found['median_ms']:.3f} ms, and without pruning it takes "
            f"{found['dense']['median_ms']:.3f} ms: measured in turns"
        )
        return found

    def _built(self, plan: Plan) -> Path:
        """Return an artifact of a plan: of the dense one the same each time."""
        subject = self._subject
        folder = self._folder / ("dense" if plan == _DENSE else "pruned")
        if folder.is_dir() and plan == _DENSE:
            return folder
        graph = self._pruned(plan)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        graph.save(folder / artifact.MODEL)
        subject.backend.build([graph], subject.target, folder, subject.report)
        artifact.seal(folder, {"backend": subject.target.backend})
        return folder

    def _pruned(self, plan: Plan) -> Graph:
        """Return the network that a plan makes; the last one is still there."""
        if self._latest is None or self._latest[0] != str(plan):
            subject = self._subject
            self._latest = str(plan), subject.pruned(plan, subject.fitted)
        return self._latest[1]
