"""Settle what will run: the target's pipeline, under the given one, under the flags."""

import math

from tilewright.errors import UnusableInput
from tilewright.layout import Pattern, parse_layout
from tilewright.pipeline import Pipeline, pass_options
from tilewright.plan import Plan
from tilewright.protocol import Pass, Report, silent
from tilewright.target import Target
from tilewright.tools.find_target import parse_pipeline

_CLUSTERS = "cluster-weights"
_PRUNE_TILES = ("prune-tiles", "prune-gradually")
# The keys of a plan's levels, and the passes that do what they say.
_FOLLOWERS = {("channels",): ("prune-channels",), ("sparsity", "tile"): _PRUNE_TILES}


def resolve_pipeline(
    target: Target,
    text: str | None,
    sparsity: float | None,
    plan: Plan | None,
    precision: str = "fp32",
    report: Report = silent,
) -> Pipeline:
    """Return the passes to run, with `sparsity` written into those that have the option.

    Without `text` it is the target's own pipeline, from which passes that prune, or round what
    they leave, are dropped where there is neither a sparsity above 0 nor a plan, and to which
    prune-channels is added
    where the plan has channels. A pattern in it, such as 2:4, takes its own share of the
    sparsity; what prunes beside it takes the rest. What `precision` needs and the passes do not
    have comes last.
    Raises UnusableInput where a flag, a pass, a sparsity in `text` or a level of the plan would
    have no effect, and where flag and `text` have different sparsities.
    """
    if sparsity is not None and not (math.isfinite(sparsity) and 0 <= sparsity < 1):
        # From 2 on it is meant in percent.
        meant = f"{sparsity / 100:.2f}" if 2 <= sparsity <= 99 else "0.6"
        raise UnusableInput(
            f"--sparsity {sparsity}: it is the share of weights to remove, from 0 up to, but "
            f"not including, 1. Try --sparsity {meant}."
        )
    pipeline = parse_pipeline(target.default_pipeline if text is None else text)
    _check_written(pipeline, None if text is None else sparsity)
    if text is None and plan is not None and plan.items("channels"):
        pipeline = _with_channels(pipeline)
    present = {step.name for step in pipeline.passes}
    wanted = parse_pipeline(target.precisions[precision])
    pipeline = pipeline.then(wanted.only(lambda step: step.name not in present))
    if text is None and plan is None:
        if not sparsity:
            return pipeline.only(lambda step: not _prunes(step) and step.name != _CLUSTERS)
        pipeline, sparsity = _beside_patterns(pipeline, sparsity)
    if sparsity is not None:
        if not any(_prunes(p) for p in pipeline.passes):
            raise UnusableInput(
                f'--sparsity {sparsity}: no pass of the pipeline "{pipeline}" prunes, so it '
                "would have no effect. Add prune-tiles, or leave the option out."
            )
        if all(_settles_itself(p) for p in pipeline.passes if _prunes(p)):
            raise UnusableInput(
                f'--sparsity {sparsity}: in the pipeline "{pipeline}" patterns, or allocators '
                "that go by a floor or a tolerance, say how much goes, so it would have no "
                "effect. Leave it out, or them."
            )
        pipeline = pipeline.replace("sparsity", sparsity, lambda p: not _settles_itself(p))
    if plan is not None and sparsity is not None:
        report(f"--plan overrules --sparsity {sparsity}: it says how much of which layer goes")
    if plan is not None and not any(reads_plan(p) for p in pipeline.passes):
        raise UnusableInput(
            f'--plan: no pass of the pipeline "{pipeline}" reads a plan, so it would have no '
            "effect. Add prune-tiles or prune-channels, or leave the option out."
        )
    if plan is not None:
        _check_followed(plan, pipeline)
    _check_order(pipeline)
    return pipeline


def check_precision(target: Target, asked: str | None) -> str:
    """Return the precision that was asked for, or the target's own.

    Raises UnusableInput where the target has no kernels for it.
    """
    precision = target.default_precision if asked is None else asked
    if precision not in target.precisions:
        raise UnusableInput(
            f'--precision {precision}: the target "{target.name}" has no kernels for it. '
            f"It has {', '.join(target.precisions)}."
        )
    return precision


def reads_plan(step: Pass) -> bool:
    """Say whether a plan, which shares a sparsity out among layers, overrules a pass."""
    options = {option.name for option in pass_options(type(step))}
    return "sparsity" in options and bool(options & {"tile", "allocate"})


def _beside_patterns(pipeline: Pipeline, sparsity: float) -> tuple[Pipeline, float | None]:
    """Return the passes that prune so much, and how much is left for those without a pattern.

    A pattern is used where that much is asked for: of what it leaves, the others take what is
    missing.
    """
    patterns = [
        parse_layout(str(vars(step)["tile"])) for step in pipeline.passes if _has_pattern(step)
    ]
    takes = max((p.sparsity for p in patterns if isinstance(p, Pattern)), default=None)
    if takes is None:
        return pipeline, sparsity
    if sparsity < takes:
        return pipeline.only(lambda step: not _has_pattern(step)), sparsity
    rest = round(1 - (1 - sparsity) / (1 - takes), 6)
    if rest:
        return pipeline, rest
    return pipeline.only(lambda step: not _prunes(step) or _has_pattern(step)), None


def _with_channels(pipeline: Pipeline) -> Pipeline:
    """Put prune-channels, where it is missing, in front of what prunes the layers it leaves."""
    if any(step.name == "prune-channels" for step in pipeline.passes):
        return pipeline
    at = [*map(reads_plan, pipeline.passes), True].index(True)
    before = Pipeline(pipeline.passes[:at], pipeline.written[:at])
    behind = Pipeline(pipeline.passes[at:], pipeline.written[at:])
    return before.then(parse_pipeline("prune-channels")).then(behind)


def _check_followed(plan: Plan, pipeline: Pipeline) -> None:
    """Raise UnusableInput where a plan has levels that no pass of the pipeline follows."""
    present = {step.name for step in pipeline.passes}
    unread = [
        f"{' and '.join(keys)} of {', '.join(items)} (add {' or '.join(followers)})"
        for keys, followers in _FOLLOWERS.items()
        if (items := plan.items(*keys)) and not present & set(followers)
    ]
    if unread:
        raise UnusableInput(
            f'--plan: no pass of the pipeline "{pipeline}" follows what the plan says: '
            f"{'; '.join(unread)}. Add that to the pipeline, or take it out of the plan."
        )


def _check_order(pipeline: Pipeline) -> None:
    """Raise UnusableInput for a pass that has no effect where it stands."""
    names = [step.name for step in pipeline.passes]
    tiled = [index for index, name in enumerate(names) if name in _PRUNE_TILES]
    for index, step in enumerate(pipeline.passes):
        if step.name == "heal" and all(p.keeps_outputs for p in pipeline.passes[:index]):
            raise UnusableInput(
                f'Pipeline "{pipeline}": heal trains what pruning left, and nothing is pruned '
                "before it. Put it behind a pass that prunes."
            )
        if step.name == _CLUSTERS:
            _check_clusters(pipeline, names[:index], names[index + 1 :])
        if step.name == "match-tiles" and tiled and tiled[-1] < index:
            raise UnusableInput(
                f'Pipeline "{pipeline}": match-tiles orders outputs for {names[tiled[-1]]}, '
                "which runs before it. Put it in front."
            )


def _check_clusters(pipeline: Pipeline, before: list[str], behind: list[str]) -> None:
    """Raise UnusableInput where clustered weights would not last, or there are none."""
    if changing := [name for name in behind if name.startswith("prune-") or name == "heal"]:
        raise UnusableInput(
            f'Pipeline "{pipeline}": {changing[0]} fits weights anew, so that the few values '
            f"of {_CLUSTERS} would be many again. Put {_CLUSTERS} behind it."
        )
    if quantizing := [name for name in before if name.startswith("quantize")]:
        raise UnusableInput(
            f'Pipeline "{pipeline}": {_CLUSTERS} rounds weights in floats, which '
            f"{quantizing[0]} leaves none of. Put it in front of that."
        )


def _check_written(pipeline: Pipeline, asked: float | None) -> None:
    """Raise UnusableInput for a sparsity in a pipeline's text that would not hold."""
    for step, written in zip(pipeline.passes, pipeline.written, strict=True):
        if "sparsity" not in written:
            continue
        found = f"{step.name}{{sparsity={vars(step)['sparsity']}}}"
        if _settles_itself(step):
            how = "tile" if _has_pattern(step) else "allocate"
            raise UnusableInput(
                f"Pipeline: {found} would have no effect, for {how}={vars(step)[how]} says how "
                "much goes. Leave one of them out."
            )
        if asked is not None and vars(step)["sparsity"] != asked:
            raise UnusableInput(
                f"--sparsity {asked} and the pipeline's {found} are different. Give one."
            )


def _settles_itself(step: Pass) -> bool:
    """Say whether a pass has a sparsity of its own: by a pattern, or by its allocator."""
    from tilewright.passes.prune.allocation import ALLOCATORS

    options = vars(step)
    allocator = ALLOCATORS.get(str(options.get("allocate", "")))
    by_itself = allocator is not None and "sparsity" not in allocator.reads
    return by_itself or _has_pattern(step)


def _has_pattern(step: Pass) -> bool:
    return ":" in str(vars(step).get("tile", ""))


def _prunes(step: Pass) -> bool:
    return any(option.name == "sparsity" for option in pass_options(type(step)))
