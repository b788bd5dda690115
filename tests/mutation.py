"""Mutation testing: ``python -m tests.mutation [PATHS] [--sample N] [--seed S] [--json FILE]``.

The library is changed in one small place, see `tests.mutants`, and the tests should notice. Each mutant meets tests
that run its line, those of the file that mirrors it and the cheapest first, until one fails or their time is up; so
what is said to survive may yet be killed by a longer run, and what is said to be killed is: at the end the tests that
killed run once more on the library as it is, and a kill by one that fails there does not count.

A first run under `coverage` learns which tests run which line, see `tests.reach`; ``--reach FILE`` keeps that for the
next.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import gc
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutants import Mutant, mutants_of
from tests.reach import OPTIONS, Reach, chosen_for, environment, learn_reach

DEFAULT = ["attn3d/attention", "attn3d/mechanisms", "attn3d/layers/gating.py"]
COPIED = ("attn3d", "tests", "docs", "examples", "pyproject.toml", "README.md", "constraints.txt")
# Imported once, before a process is forked for every mutant.
WARM = ("torch", "torch._dynamo", "torch.export", "torch.onnx", "torch.distributed", "monai.networks.nets", "pytest",
        "hypothesis", "numpy", "onnx", "onnxscript", "onnxruntime")  # fmt: skip
PATIENCE = 10.0  # seconds: a test hangs that takes half as long again as under coverage, and these
MOST_MEMORY = 12 * 2**30  # a mutant may ask for any
NONE_FOUND = "no such test"  # a mutant that changes what tests are called; it has not failed one
NOT_LOOKED_AT = "not looked at"


class Outcome(NamedTuple):
    """What became of a mutant: how it was killed, "" when it survived, and by which test."""

    how: str
    test: str = ""


class Chosen:
    """A plugin of pytest that runs some tests in a given order, tells which failed, and ends a test that hangs.

    Args:
        tests: the seconds that each takes, by its identifier.
        tell: hears of a test that failed.
    """

    def __init__(self, tests: dict[str, float], tell: Callable[[str], None]) -> None:
        self.tests = tests
        self.order = {test: place for place, test in enumerate(tests)}
        self.tell = tell

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leaves what was chosen."""
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Sets the clock, whose alarm ends the process."""
        signal.alarm(math.ceil(PATIENCE + 1.5 * self.tests[nodeid]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Tells of a failure."""
        if report.failed:
            self.tell(report.nodeid)


def run_tests(tests: dict[str, float], root: Path, stop: bool) -> tuple[str, list[str]]:
    """In a process of its own: how it ended, "" when all passed, and the tests that failed.

    Args:
        tests: the seconds that each takes, by its identifier.
        root: the copy of the library.
        stop: whether to stop at the first that fails, and to leave no compiled files: the library is a mutant.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        code = 3
        try:
            os.close(reader)
            code = _in_child(tests, root, stop, writer)
        finally:
            os._exit(code)  # never back into the loop over mutants
    os.close(writer)
    try:
        status, paused = _wait(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # whatever the tests started and left
    with os.fdopen(reader) as told:
        failed = told.read().split("\n")[:-1]
    if os.WIFSIGNALED(status):
        code = os.WTERMSIG(status)
        if code == signal.SIGALRM and paused:
            return run_tests(tests, root, stop)
        return "time-out" if code in (signal.SIGXCPU, signal.SIGALRM) else f"crash, signal {code}", failed
    code = os.WEXITSTATUS(status)
    return {0: "", 1: "test", 5: NONE_FOUND}.get(code, "import"), failed


def _wait(process: int) -> tuple[int, bool]:
    """Its status at the end, and whether it was stopped meanwhile, as this one, while the clock ran on."""
    paused, before = False, time.monotonic()
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        time.sleep(0.02)
        now = time.monotonic()
        paused |= now - before > 5.0
        before = now
    return ended[1], paused


def _in_child(tests: dict[str, float], root: Path, stop: bool, writer: int) -> int:
    os.setsid()
    signal.alarm(120)  # in which all are collected
    seconds = math.ceil(3 * PATIENCE + 3 * sum(tests.values()))  # of the processor
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    os.chdir(root)
    os.environ.update(environment(root))
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = stop  # a mutant may have the time and the size of another
    for name in list(sys.modules):
        if name.split(".")[0] in ("tests", "attn3d"):
            del sys.modules[name]
    import pytest

    if "torch" in sys.modules:  # ranks that are forked need not import it again
        multiprocessing = importlib.import_module("torch.multiprocessing")
        multiprocessing.spawn = functools.partial(multiprocessing.start_processes, start_method="fork")
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    chosen = Chosen(tests, lambda test: os.write(writer, f"{test}\n".encode()))
    options = [*OPTIONS, "--tb=no", "-p", "no:xdist", "-p", "no:cov", *(["-x"] if stop else []), *files]
    return int(pytest.main(options, plugins=[chosen]))


def outcome_of(mutant: Mutant, path: str, root: Path, reach: Reach, limit: float) -> Outcome:
    """Writes the mutant into the copy, lets the tests meet it and puts the file back."""
    file = root / path
    original = file.read_text()
    for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
        compiled.unlink()
    file.write_text(mutant.source)
    try:
        for tests in chosen_for(mutant, path, reach, limit):
            how, failed = run_tests({test: reach.seconds[test] for test in tests}, root, stop=True)
            if how not in ("", NONE_FOUND):
                return Outcome(how, failed[0] if failed else "")
        return Outcome("")
    finally:
        file.write_text(original)


def sample(mutants: dict[str, list[Mutant]], size: int | None, seed: int) -> list[tuple[str, Mutant]]:
    """As large a share of every file, one of it at least; in an order by chance, so that a part is a sample too."""
    total = sum(map(len, mutants.values()))
    share = 1.0 if size is None else min(1.0, size / total)
    drawn = []
    for path, of_file in sorted(mutants.items()):
        count = max(1, round(share * len(of_file)))
        drawn += [(path, mutant) for mutant in random.Random(f"{seed} {path}").sample(of_file, count)]
    random.Random(seed).shuffle(drawn)
    return drawn


def interval(killed: int, of: int) -> tuple[float, float]:
    """In per cent, where the share lies with 95 % confidence (Wilson)."""
    z = 1.96
    middle, half = killed + z * z / 2, z * math.sqrt(killed * (of - killed) / of + z * z / 4)
    return tuple(round(100 * bound / (of + z * z), 1) for bound in (middle - half, middle + half))


def summary(
    results: list[tuple[str, Mutant, Outcome]], total: int, command: str, seed: int, findings: dict[tuple, str]
) -> dict[str, Any]:
    """What is written; ``findings`` are what was found out about survivors of an earlier run."""
    files: dict[str, dict[str, int]] = {}
    for path, _, outcome in sorted(results, key=lambda result: result[0]):
        counts = files.setdefault(path, {"mutants": 0, "killed": 0})
        counts["mutants"] += 1
        counts["killed"] += bool(outcome.how)
    survivors = [
        {"file": path, "line": mutant.line, "mutation": mutant.mutation}
        | {"why": findings.get((path, mutant.mutation), NOT_LOOKED_AT)}
        for path, mutant, outcome in sorted(results, key=lambda result: (result[0], result[1].line))
        if not outcome.how
    ]
    killed = len(results) - len(survivors)
    return {
        "command": command,
        "sampled": len(results),
        "seed": seed,
        "total_mutants": total,
        "killed_percent": round(100 * killed / len(results), 1),
        "interval_percent": interval(killed, len(results)),
        "killed_by": collections.Counter(outcome.how for *_, outcome in results if outcome.how),
        "files": files,
        "survivors": survivors,
    }


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", default=DEFAULT, help="files and folders of the library")
    parser.add_argument("--sample", type=int, metavar="N", help="how many mutants; by default every one")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result; findings that it has are kept")
    parser.add_argument("--reach", type=Path, metavar="FILE", help="which tests run which line: read, or written")
    parser.add_argument("--limit", type=float, default=25.0, metavar="SECONDS", help="of tests for a mutant")
    options = parser.parse_args(arguments)
    sources = [file for path in map(Path, options.paths) for file in ([path] if path.is_file() else path.rglob("*.py"))]
    mutants = {str(file): mutants_of(file.read_text()) for file in sources}
    mutants = {path: of_file for path, of_file in mutants.items() if of_file}
    drawn = sample(mutants, options.sample, options.seed)
    total = sum(map(len, mutants.values()))
    command = " ".join(["python -m tests.mutation", *(sys.argv[1:] if arguments is None else arguments)])
    findings = {}
    if options.json and options.json.exists():
        for one in json.loads(options.json.read_text())["survivors"]:
            findings[one["file"], one["mutation"]] = one["why"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        for name in COPIED:
            if Path(name).exists():
                copy = shutil.copytree if Path(name).is_dir() else shutil.copy2
                copy(name, root / name)
        if options.reach and options.reach.exists():
            reach = Reach.of_json(options.reach.read_text())
        else:
            reach = learn_reach(root)
            if options.reach:
                options.reach.write_text(reach.to_json())
        os.environ.update(environment(root))
        for name in WARM:
            importlib.import_module(name)
        gc.freeze()
        check_without_mutant(root, reach)
        results, start = [], time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):  # what was drawn so far is a sample too
            for path, mutant in drawn:
                results.append((path, mutant, outcome_of(mutant, path, root, reach, options.limit)))
                how = " by ".join(filter(None, results[-1][2])) or "SURVIVED"
                place = f"{len(results)}/{len(drawn)} {time.monotonic() - start:.0f} s  {path}:{mutant.line}"
                print(f"{place}  {mutant.mutation}  {how}", flush=True)
        results = without_false_kills(results, root, reach)
    found = summary(results, total, command, options.seed, findings)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['killed_percent']} % of {len(results)} of {total} killed, 95 %: {found['interval_percent']}")


def check_without_mutant(root: Path, reach: Reach) -> None:
    """Runs the cheapest test of every file, which compiles them all for the processes to come.

    Raises:
        RuntimeError: when one fails, so that nothing it says of a mutant would be true.
    """
    cheapest = {test.split("::")[0]: test for test in sorted(reach.seconds, key=reach.seconds.get, reverse=True)}
    how, failed = run_tests({test: reach.seconds[test] for test in cheapest.values()}, root, stop=False)
    if how:
        raise RuntimeError(f"without a mutant: {how}, {failed}")


def without_false_kills(
    results: list[tuple[str, Mutant, Outcome]], root: Path, reach: Reach
) -> list[tuple[str, Mutant, Outcome]]:
    """Runs the tests that killed on the library as it is; whom one killed that fails there has survived."""
    tests = sorted({outcome.test for *_, outcome in results if outcome.test})
    failed: list[str] = []
    if tests:
        how, failed = run_tests({test: reach.seconds.get(test, 1.0) for test in tests}, root, stop=False)
        if how not in ("", "test"):
            raise RuntimeError(f"on the library as it is, the tests that killed end with: {how}")
        print(f"{len(tests)} tests killed, of which these fail on the library as it is: {failed}")
    return [(path, mutant, Outcome("") if outcome.test in failed else outcome) for path, mutant, outcome in results]


if __name__ == "__main__":
    main()
