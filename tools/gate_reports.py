"""Reports of the gate: a table for people, Markdown for a pull request, JUnit XML for CI."""

from collections.abc import Sequence
from itertools import groupby
from xml.etree import ElementTree

from tilewright.gate import Status
from tilewright.tools.gate_artifacts import Check

COLUMNS = ("artifact", "check", "before", "now", "change", "band", "budget", "result")


def check_row(check: Check) -> tuple[str, ...]:
    """Return a check as cells under COLUMNS."""
    verdict = check.verdict
    band = ""
    if verdict.runs and verdict.low is not None and verdict.high is not None:
        band = f"{verdict.low - 1:+.1%} to {verdict.high - 1:+.1%}, {verdict.runs} runs"
    return (
        check.artifact,
        check.name,
        _figure(check.before, check.unit),
        _figure(check.now, check.unit),
        "" if verdict.ratio is None else f"{verdict.ratio - 1:+.1%}",
        band,
        f"{check.budget * 100:.3g}%",
        f"{verdict.status}: {verdict.reason}",
    )


def summary(checks: Sequence[Check]) -> str:
    """Say how many checks passed, how many did not, and what helps against noise."""
    counts = {status: sum(c.verdict.status == status for c in checks) for status in Status}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    advice = ""
    if counts[Status.UNDECIDED]:
        advice = " Where it is undecided, a quiet machine, --threads 1 or more budget helps."
    return f"{len(checks)} checks: {told}.{advice}"


def failure(check: Check) -> str:
    """Say in a clause what became worse, and by how much."""
    _, _, before, now, change, band, budget, _ = check_row(check)
    figures = f"{change}, band {band}" if band else f"{now}, and was {before} ({change})"
    return f'{check.name} of "{check.artifact}": {figures}; the budget is {budget}'


def markdown(checks: Sequence[Check]) -> str:
    """Return a Markdown table, for the summary of a GitHub step or a pull request."""
    failed = any(check.verdict.status == Status.FAILED for check in checks)
    lines = [
        f"### Latency gate: {'failed' if failed else 'passed'}",
        "",
        summary(checks),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(map(_cell, check_row(check))) + " |" for check in checks),
    ]
    return "\n".join(lines) + "\n"


def junit(checks: Sequence[Check]) -> bytes:
    """Return JUnit XML: a suite an artifact, a case a check; what is not settled is skipped."""
    root = ElementTree.Element("testsuites", name="tilewright gate")
    for artifact, group in groupby(checks, key=lambda check: check.artifact):
        cases = list(group)
        statuses = [check.verdict.status for check in cases]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_printable(artifact),
            tests=str(len(cases)),
            failures=str(statuses.count(Status.FAILED)),
            skipped=str(sum(s in (Status.UNDECIDED, Status.UNJUDGED) for s in statuses)),
            errors="0",
        )
        for check in cases:
            _add_case(suite, check)
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _add_case(suite: ElementTree.Element, check: Check) -> None:
    classname, name = _printable(check.artifact), _printable(check.name)
    case = ElementTree.SubElement(suite, "testcase", classname=classname, name=name)
    status, reason = check.verdict.status, check.verdict.reason
    if status == Status.FAILED:
        told = _printable(failure(check))
        ElementTree.SubElement(case, "failure", message=reason).text = told
    elif status in (Status.UNDECIDED, Status.UNJUDGED):
        ElementTree.SubElement(case, "skipped", message=f"{status}: {reason}")


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if float(value).is_integer() and not unit else f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def _cell(text: str) -> str:
    return _printable(text).replace("|", "\\|")


def _printable(text: str) -> str:
    """Replace what no XML or Markdown can hold: names of folders may have any character."""
    return "".join(c if c.isprintable() else "?" for c in text)
