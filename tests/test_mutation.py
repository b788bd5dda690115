"""The tool that makes mutants, on a planted function."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import mutants_of
from tests.mutation import interval, sample
from tests.reach import Reach, chosen_for, mirrors_of

PLANTED = '''"""A module."""


def clipped(x: int, most: int = 9) -> int:
    """At most so much."""
    if x < 0:
        raise ValueError(f"`x` must not be negative, got {x}")
    spare = most * 1000
    return x if x <= most else most
'''
TESTS = """import pytest

from attn3d.planted import clipped


def test_clips():
    assert [clipped(x) for x in (0, 9, 11)] == [0, 9, 9]


def test_refuses_what_is_negative():
    with pytest.raises(ValueError):
        clipped(-1)
"""


@pytest.mark.parametrize(
    ("source", "mutations"),
    [
        ("a < b", {"a < b -> (a <= b)"}),
        ("a is None", {"a is None -> (a is not None)"}),
        ("a + b", {"a + b -> (a - b)"}),
        ("a and b", {"a and b -> (a or b)"}),
        ("not a", {"not a -> (a)"}),
        ("-a", {"-a -> (a)"}),
        ("7", {"7 -> 8"}),
        ("True", {"True -> False"}),
        ("2.5", {"2.5 -> 5.0"}),
        ("'é'", {"'é' -> 'é_'"}),
        ("a if b else c", {"b -> (not b)"}),
        ("a if b == c else d", {"b == c -> (b != c)"}),
        ("[a for a in b if a]", {"a -> (not a)"}),
        ("f(a, b)", {"f(a, b) -> f(b, a)"}),
        ("max(a, b)", set()),
        ("f(a, b=c)", {"f(a, b=c) -> f(a)"}),
        ("(\n    a\n    @ b\n)", {"a @ b -> (a * b)"}),
    ],
)
def test_mutants_of_an_expression(source, mutations):
    """Beside the result that is None."""
    found = {mutant.mutation for mutant in mutants_of(f"def planted():\n    return {source}\n")}
    assert {mutation for mutation in found if not mutation.endswith("-> None")} == mutations
    assert len(found) == len(mutations) + 1


@pytest.mark.parametrize(
    ("source", "mutations"),
    [
        ("f()", {"f() -> pass"}),
        ("a += b", {"a += b -> pass", "a += b -> a -= b"}),
        ("a.b = c", {"a.b = c -> pass"}),
        ("a = b", set()),
        ("raise ValueError('a', 1)", {"raise ValueError('a', 1) -> pass"}),
        ("del a", {"del a -> pass"}),
        ("if a:\n    b\n", {"a -> (not a)", "b -> pass"}),
        ("@a\ndef f(): pass", {"a -> (lambda undecorated: undecorated)"}),
        ("try:\n    f()\nexcept E:\n    g()", {"f() -> pass", "g() -> pass"}),
        ('"""Documentation."""', set()),
        ("import a", set()),
        ("a: int = b", set()),
        ("def f(a: int | None, b: 'T' = None) -> 'T': pass", set()),
        ("__all__ = ['a']", set()),
        ("Alias = int | str | None", set()),
        ("if TYPE_CHECKING:\n    a = 1", set()),
        ('f"{a!r} of {b + 1}"', {'f"{a!r} of {b + 1}" -> pass'}),
    ],
)
def test_mutants_of_a_statement(source, mutations):
    assert {mutant.mutation for mutant in mutants_of(source)} == mutations


def test_a_mutant_differs_in_its_place_alone():
    for mutant in mutants_of(PLANTED):
        before, after = PLANTED.splitlines(), mutant.source.splitlines()
        assert [line for line in range(len(before)) if before[line] != after[line]] == [mutant.line - 1]
        assert mutant.line in mutant.lines
        assert mutant.within == range(4, 10)
        compile(mutant.source, "planted", "exec")


def test_tests_run_the_line_and_those_that_mirror_the_file_come_first():
    mutant = next(one for one in mutants_of(PLANTED) if one.line == 9)
    seconds = {"tests/a.py::b[1]": 1.0, "tests/a.py::b[2]": 0.5, "tests/test_planted.py::c": 2.0, "tests/d.py::e": 0.1}
    reach = Reach(seconds, {"attn3d/planted.py": {9: [*seconds][:3], 8: ["tests/d.py::e"]}})
    assert Reach.of_json(reach.to_json()) == reach
    first, rest = chosen_for(mutant, "attn3d/planted.py", reach, 5.0)
    assert first == ["tests/test_planted.py::c"]
    assert rest == ["tests/a.py::b[2]", "tests/a.py::b[1]"]
    assert chosen_for(mutant, "attn3d/planted.py", reach, 0.6)[1] == ["tests/a.py::b[2]"]


def test_a_line_that_no_test_is_seen_to_run_gets_those_of_its_function():
    mutant = next(one for one in mutants_of(PLANTED) if one.line == 9)
    reach = Reach({"tests/d.py::e": 0.1, "tests/d.py::f": 0.1}, {"planted.py": {8: ["tests/d.py::e"], 99: []}})
    assert chosen_for(mutant, "planted.py", reach, 5.0) == [["tests/d.py::e"]]


def test_the_files_that_mirror_one():
    assert mirrors_of("attn3d/attention/sharded/ring.py") == {
        "tests/test_attention.py",
        "tests/attention/test_sharded.py",
        "tests/attention/sharded/test_ring.py",
    }


def test_a_sample_is_of_every_file_and_the_same_by_seed():
    mutants = {"a.py": mutants_of(PLANTED), "b.py": mutants_of(PLANTED)[:1]}
    drawn = sample(mutants, 5, seed=1)
    assert drawn == sample(mutants, 5, seed=1)
    assert drawn != sample(mutants, 5, seed=2)
    assert {path for path, _ in drawn} == {"a.py", "b.py"}
    assert len(sample(mutants, None, seed=1)) == len(mutants["a.py"]) + 1


def test_the_interval_is_that_of_wilson():
    """His of 9 in 10 at 95 %, from a table."""
    assert interval(9, 10) == (59.6, 98.2)


def test_planted_mutants_are_killed_or_survive(tmp_path):
    """Nobody reads ``spare``, and ``most`` is itself either way; whatever else changes is noticed."""
    for path, text in {
        "attn3d/__init__.py": "",
        "attn3d/planted.py": PLANTED,
        "tests/__init__.py": "",
        "tests/layers/test_gating.py": TESTS,
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    code = "from tests import mutation; mutation.WARM = (); mutation.main(['attn3d/planted.py', '--json', 'out.json'])"
    repository = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env={"PYTHONPATH": repository}, check=True)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [one["mutation"] for one in found["survivors"]] == [
        "most * 1000 -> (most / 1000)",
        "1000 -> 1001",
        "x <= most -> (x < most)",
    ]
    mutants = len(mutants_of(PLANTED))
    assert found["files"] == {"attn3d/planted.py": {"mutants": mutants, "killed": mutants - 3}}
    assert found["killed_by"] == {"test": mutants - 3}
    assert (tmp_path / "attn3d/planted.py").read_text() == PLANTED
