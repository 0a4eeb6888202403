"""Pipeline: passes in order, written as text, run one by one and verified in between.

    fold-constants,prune-tiles{sparsity=0.6,skip=conv_1|"odd, name"}

A pass is named by its command-line name; its options are its dataclass's fields. Tuples are
joined by "|". A text that holds a space or any of , | { } = " is quoted as in JSON.
"""

import dataclasses
import importlib
import json
import re
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tilewright.errors import PassFailed, TilewrightError, UnknownName, UnusableInput
from tilewright.graph import Graph
from tilewright.protocol import Checked, Context, Note, Pass
from tilewright.removed import removed
from tilewright.reproduce import write_reproduction
from tilewright.trace import Step, Trace, changes, lost_weights, survey
from tilewright.verify import Verifier

Registry = Mapping[str, str]
REPRODUCTIONS = Path("tilewright-repro")

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^\s,|{}="]+|[,|{}=])')
_PLAIN = re.compile(r'[^\s,|{}="]+')


class Run(NamedTuple):
    """What a pipeline returns: the new graph, what each pass did, what each left alone.

    `pruned` names the layers that lost weights in some pass.
    """

    graph: Graph
    pruned: frozenset[str]
    trace: Trace
    notes: Mapping[str, tuple[Note, ...]]


@dataclass(frozen=True)
class Pipeline:
    """Passes to run, in order. `str(pipeline)` is the text that parses to the same pipeline.

    The text shows the options that were written, for each pass in `written`, and those that
    are not at their defaults.
    """

    passes: tuple[Pass, ...]
    written: tuple[frozenset[str], ...] = dataclasses.field(
        default=(), compare=False, repr=False
    )

    @classmethod
    def parse(cls, text: str, registry: Registry) -> "Pipeline":
        """Read a pipeline's text. `registry` says which class has which name.

        Raises UnknownName for a pass or an option that does not exist, and UnusableInput for
        text that cannot be read and for values that a pass refuses.
        """
        words = _Words(text)
        passes: list[tuple[Pass, frozenset[str]]] = []
        while not words.ended():
            if passes:
                words.expect(",")
            passes.append(_parse_pass(words, registry))
        return cls(tuple(p for p, _ in passes), tuple(written for _, written in passes))

    def __str__(self) -> str:
        return ",".join(self.texts())

    def texts(self) -> list[str]:
        """Return the text of each pass."""
        return [_print_pass(step, written) for step, written in self._entries()]

    def only(self, keep: Callable[[Pass], bool]) -> "Pipeline":
        """Return the pipeline without the passes that `keep` says no to."""
        kept = [(step, written) for step, written in self._entries() if keep(step)]
        return Pipeline(tuple(step for step, _ in kept), tuple(written for _, written in kept))

    def then(self, other: "Pipeline") -> "Pipeline":
        """Return this pipeline with another one behind it."""
        entries = [*self._entries(), *other._entries()]
        return Pipeline(
            tuple(step for step, _ in entries), tuple(names for _, names in entries)
        )

    def replace(
        self, option: str, value: object, where: Callable[[Pass], bool] = lambda _: True
    ) -> "Pipeline":
        """Return the pipeline with an option written into every pass that has it.

        But for those that `where` says no to. Raises UnusableInput where a pass refuses the
        value.
        """
        passes, written = [], []
        for step, names in self._entries():
            values = {field.name: getattr(step, field.name) for field, _ in _fields(type(step))}
            has = option in values and where(step)
            passes.append(_construct(type(step), {**values, option: value}) if has else step)
            written.append(names | {option} if has else names)
        return Pipeline(tuple(passes), tuple(written))

    def run(
        self,
        graph: Graph,
        context: Context,
        *,
        reproductions: Path | None = REPRODUCTIONS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Run:
        """Run the passes and return the last one's graph.

        What passes lack (`Checked`) is said before the first one runs. Between passes: needed
        facts are checked, claimed ones proved, the graph goes through onnx.checker, its inputs
        and outputs must be the same, and where a pass promises to keep the answers,
        onnxruntime says whether it did.

        Raises UnusableInput where a pass cannot work on this model, and PassFailed where one
        breaks a promise; the folder that reruns it is written into `reproductions`.
        """
        for index, step in enumerate(self.passes):
            if isinstance(step, Checked):
                step.check(dataclasses.replace(context, behind=self.passes[index + 1 :]))
        verifier = Verifier(graph, context)
        steps: list[Step] = []
        notes: dict[str, tuple[Note, ...]] = {}
        before, texts = survey(graph), self.texts()
        pruned: frozenset[str] = frozenset()
        for index, step in enumerate(self.passes):
            context.report(f"{step.name} ({index + 1} of {len(self.passes)})")
            if context.dense is None and not step.keeps_outputs:
                context = dataclasses.replace(context, dense=graph)
            verifier.require(step, graph)
            try:
                start = clock()
                behind = self.passes[index + 1 :]
                outcome = step(graph, dataclasses.replace(context, behind=behind))
                seconds = clock() - start
                verifier.accept(step, outcome.graph)
            except UnusableInput:
                raise
            except Exception as error:
                rest = ",".join(texts[index:])
                raise _failure(step, error, graph, rest, context, reproductions) from error
            changed = changes(graph, outcome.graph)
            if not step.keeps_outputs:
                pruned |= lost_weights(graph, outcome.graph)
            lost = removed(graph, outcome.graph)
            graph = outcome.graph
            steps.append(Step(texts[index], survey(graph), changed, seconds, lost))
            notes[step.name] = notes.get(step.name, ()) + tuple(outcome.notes)
        return Run(graph, pruned, Trace(before, tuple(steps)), notes)

    def _entries(self) -> list[tuple[Pass, frozenset[str]]]:
        written = self.written or (frozenset(),) * len(self.passes)
        return list(zip(self.passes, written, strict=True))


class PassOption(NamedTuple):
    """One option of a pass: its name, its type in words, and its default as text."""

    name: str
    type: str
    default: str | None


def load_pass(name: str, registry: Registry) -> type[Pass]:
    """Import the class of a pass. Raises UnknownName."""
    if name not in registry:
        raise UnknownName("pass", name, registry)
    module, _, attribute = registry[name].partition(":")
    found: type[Pass] = getattr(importlib.import_module(module), attribute)
    return found


def pass_options(cls: type[Pass]) -> list[PassOption]:
    """Describe the options of a pass, in order."""
    return [
        PassOption(field.name, _type_words(kind), _default_text(field))
        for field, kind in _fields(cls)
    ]


def _failure(
    step: Pass,
    error: Exception,
    graph: Graph,
    rest: str,
    context: Context,
    reproductions: Path | None,
) -> PassFailed:
    said = (
        str(error) if isinstance(error, TilewrightError) else f"{type(error).__name__}: {error}"
    )
    where = "Nothing was written aside."
    if reproductions is not None:
        try:
            folder = write_reproduction(reproductions, step.name, graph, rest, context)
            where = f"Rerun: tilewright reproduce {folder}"
        except OSError as obstacle:
            where = f"The folder that reruns it could not be written: {obstacle}."
    return PassFailed(f"{step.name}: {said}\n{where}")


# ---- text to passes ----


class _Words:
    """The tokens of a pipeline's text, taken one by one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._ahead: str | None = None

    def ended(self) -> bool:
        return self._ahead is None and not self._text[self._place :].strip()

    def peek(self) -> str:
        if self._ahead is None and not self.ended():
            match = _TOKEN.match(self._text, self._place)
            if match is None:
                raise self.error("a closing quote")
            self._ahead, self._place = match[1], match.end()
        return self._ahead or ""

    def take(self) -> str:
        word = self.peek()
        self._ahead = None
        return word

    def expect(self, word: str) -> None:
        if self.peek() != word:
            raise self.error(f'"{word}"')
        self.take()

    def text(self, what: str) -> str:
        word = self.peek()
        if not word or word in ",|{}=":
            raise self.error(what)
        self.take()
        if not word.startswith('"'):
            return word
        try:
            return str(json.loads(word))
        except ValueError:
            raise self.error("a text quoted as in JSON") from None

    def error(self, wanted: str) -> UnusableInput:
        found = f'"{self._ahead}"' if self._ahead else "the end"
        place = self._place - len(self._ahead or "")
        if self._ahead is None and not self.ended():
            found = f'"{self._text[self._place :].strip()[:12]}"'
        return UnusableInput(
            f'Pipeline "{self._text}" cannot be read: {wanted} is wanted at character '
            f"{place + 1}, but there is {found}. Write it like "
            '"fold-constants,prune-tiles{sparsity=0.6,skip=a|b}".'
        )


def _parse_pass(words: _Words, registry: Registry) -> tuple[Pass, frozenset[str]]:
    name = words.text("the name of a pass")
    cls = load_pass(name, registry)
    kinds = {field.name: kind for field, kind in _fields(cls)}
    values: dict[str, object] = {}
    if words.peek() != "{":
        return _construct(cls, values), frozenset()
    words.take()
    while words.peek() != "}":
        if words.ended():
            raise words.error('"}"')
        if values:
            words.expect(",")
        option = words.text("the name of an option")
        if option not in kinds:
            raise UnknownName(f"option of {name}", option, kinds or ["none at all"])
        if option in values:
            raise UnusableInput(f'Pipeline: {name} has the option "{option}" twice; give one.')
        words.expect("=")
        values[option] = _parse_value(words, kinds[option], f'option "{option}" of {name}')
    words.take()
    return _construct(cls, values), frozenset(values)


def _parse_value(words: _Words, kind: Any, where: str) -> object:
    if typing.get_origin(kind) is tuple:
        items: list[object] = []
        if words.peek() in ("", ",", "}"):
            return ()
        items.append(_parse_one(words, typing.get_args(kind)[0], where))
        while words.peek() == "|":
            words.take()
            items.append(_parse_one(words, typing.get_args(kind)[0], where))
        return tuple(items)
    return _parse_one(words, kind, where)


def _parse_one(words: _Words, kind: Any, where: str) -> object:
    quoted = words.peek().startswith('"')
    text = words.text(f"a value for {where}")
    choices = _choices(kind)
    if type(None) in choices and text == "none" and not quoted:
        return None
    kind = next(c for c in choices if c is not type(None))
    if kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return kind(text)
    except (KeyError, ValueError):
        raise UnusableInput(
            f'Pipeline: {where} must be {_type_words(kind)}, but it is "{text}".'
        ) from None


def _construct(cls: type[Pass], values: Mapping[str, object]) -> Pass:
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UnusableInput(f"Pipeline: {cls.name} cannot be set up: {error}.") from error


# ---- passes to text ----


def _print_pass(step: Pass, written: frozenset[str]) -> str:
    options = [
        f"{field.name}={_print_value(getattr(step, field.name))}"
        for field, _ in _fields(type(step))
        if field.name in written or getattr(step, field.name) != _default(field)
    ]
    return f"{step.name}{{{','.join(options)}}}" if options else step.name


def _print_value(value: object) -> str:
    if isinstance(value, tuple):
        return "|".join(_print_value(item) for item in value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value != "none"
        return value if plain else json.dumps(value)
    return str(value)


def _fields(cls: type[Pass]) -> Iterator[tuple["dataclasses.Field[Any]", Any]]:
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        yield field, kinds[field.name]


def _default(field: "dataclasses.Field[Any]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _default_text(field: "dataclasses.Field[Any]") -> str | None:
    default = _default(field)
    return None if default is dataclasses.MISSING else _print_value(default)


def _choices(kind: Any) -> Sequence[Any]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _type_words(kind: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "none",
    }
    if typing.get_origin(kind) is tuple:
        return f"{_type_words(typing.get_args(kind)[0])}, or several joined by |"
    return " or ".join(words.get(choice, str(choice)) for choice in _choices(kind))
