"""Runs commands with kills at every point and with full disks of every size, and counts the outcomes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.process import Outcome, command
from tests.faults.scenes import Scene, contents, stage, whole


class Row(NamedTuple):
    """A fault and the numbers of its outcomes.

    Attributes:
        what: the fault.
        tried: number of runs.
        recovered: runs with the same result as without the fault, and no temporary files.
        refused: runs with an error of one line that names the problem, and no incomplete files.
        wrong: all other runs.
        problems: a line for each wrong run.
    """

    what: str
    tried: int
    recovered: int
    refused: int
    wrong: int
    problems: list[str]


def kills(scene: Scene, inputs: Path, points: int | None) -> Row:
    """Kills the command with SIGKILL at each point; then a user continues."""
    folder = inputs.parent / "work"
    first = command(scene.arguments, stage(inputs, scene, folder))
    if first.code:
        return Row(f"kills: {scene.name}", 1, 0, 0, 1, [f"without a fault: {first.said}"])
    expected = contents(folder / scene.makes)
    problems, chosen = [], spread(range(1, first.points + 1), points)
    for point in chosen:
        killed = command(scene.arguments, stage(inputs, scene, folder), kill_at=point)
        problem = whole(folder) if killed.code is None else f"was not killed: exit {killed.code}, {killed.said}"
        problem = problem or gone_on(scene, folder, expected)
        if problem:
            problems.append(f"point {point} of {first.points}: {problem}")
    wrong = len(problems)
    return Row(f"kills: {scene.name}", len(chosen), len(chosen) - wrong, 0, wrong, problems)


def full_disks(scene: Scene, inputs: Path, points: int | None) -> Row:
    """Limits all files to one byte less than the size of one of them; then a user continues without the limit.

    With the limit, the command must end with one line that names a file to be written, or list the case as failed.
    """
    folder = inputs.parent / "work"
    if (first := command(scene.arguments, stage(inputs, scene, folder))).code:
        return Row(f"full disks: {scene.name}", 1, 0, 0, 1, [f"without a fault: {first.said}"])
    made = folder / scene.makes
    expected, before = contents(made), {path.name for path in (inputs / scene.makes).rglob("*")}
    sizes = {path.stat().st_size for path in made.rglob("*") if path.is_file() and path.name not in before}
    problems, chosen = [], spread(sorted(sizes), points)
    for size in chosen:
        full = command(scene.arguments, stage(inputs, scene, folder), largest_file=size - 1)
        problem = whole(folder) or refused(full, folder) or gone_on(scene, folder, expected)
        if problem:
            problems.append(f"{size - 1} bytes: {problem}")
    return Row(f"full disks: {scene.name}", len(chosen), 0, len(chosen) - len(problems), len(problems), problems)


def gone_on(scene: Scene, folder: Path, expected: dict) -> str:
    """The problem after a user continues; empty if the files are those of a run without a fault."""
    again = command(scene.again(folder, scene.arguments), folder)
    if again.code:
        return f"going on ended with {again.code}: {again.said[-600:]}"
    found = contents(folder / scene.makes)
    if found != expected:
        return f"differs: {sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))}"
    left = [path.name for path in folder.rglob(".*")]
    return f"left over: {left}" if left else ""


def refused(outcome: Outcome, folder: Path, exits: Sequence[int] = (1, 2)) -> str:
    """The problem of an error; empty if there are a right exit code and clear lines, and no temporary files."""
    if outcome.code not in exits:
        return f"ended with {outcome.code}: {outcome.said[-600:]}"
    lines = [line for line in outcome.said.splitlines() if line.startswith("attn3d ")]
    if not lines or "Traceback" in outcome.said or "/tmp/tmp" in outcome.said.replace(str(folder.parent), ""):
        return f"is no clear line: {outcome.said[-600:]}"
    if left := [path.name for path in folder.rglob(".unfinished-*")]:
        return f"left over: {left}"
    return ""


def spread(values: Iterable[Any], count: int | None) -> list[Any]:
    """`count` of the values, spread evenly; all for None."""
    values = list(values)
    if count is None or count >= len(values):
        return values
    return [values[round((index + 0.5) * len(values) / count - 0.5)] for index in range(count)]
