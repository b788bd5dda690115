"""Tests write their numbers of cases to the file of --junitxml, and docs/reliability.py adds them up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scorecard import CONDITIONS
from tests.scripts import load

TESTS = """
import pytest

@pytest.mark.scorecard("finite")
@pytest.mark.parametrize("value", range(3))
def test_items(value): pass

@pytest.mark.scorecard("shapes")
def test_cases(count_cases):
    for value in range(7):
        assert value < 5
        count_cases()

@pytest.mark.scorecard("finite", "memory")
def test_of_two(count_cases):
    count_cases(2, "memory")
    count_cases(4, "finite")

@pytest.mark.scorecard("operators")
@pytest.mark.skipif(True, reason="no device")
def test_skipped(): pass

@pytest.mark.scorecard("errors")
def test_nothing_counted(count_cases): pass

@pytest.mark.scorecard("memory")
class TestGroup:
    def test_inside(self): pass

    @pytest.mark.scorecard
    def test_taken_out(self): pass

def test_without(): pass
"""


def run(tmp_path: Path, source: str, *options: str) -> subprocess.CompletedProcess:
    (tmp_path / "test_some.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "tests.scorecard", "-p", "no:cacheprovider", *options]
    command += [f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path), f"--junitxml={tmp_path}/junit.xml"]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_counts(tmp_path, processes):
    run(tmp_path, TESTS, *(["-n", "2"] if processes > 1 else []))
    found = json.loads(json.dumps(load("docs/reliability.py").read_junit(tmp_path / "junit.xml")))
    assert found["items"] == {"passed": 8, "failed": 1, "skipped": 1}
    assert found["cases"] == {
        "finite": {"passed": 7, "reasons": {}},
        "shapes": {"passed": 5, "failed": 1, "reasons": {}},
        "memory": {"passed": 3, "reasons": {}},
        "operators": {"skipped": 1, "reasons": {"no device": 1}},
        "errors": {"passed": 0, "reasons": {}},
    }


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("@pytest.mark.scorecard('finit')\ndef test_it(): pass", "no condition of the scorecard is called 'finit'"),
        ("@pytest.mark.scorecard('finite', 'memory')\ndef test_it(): pass", "which of its conditions"),
        ("@pytest.mark.scorecard('finite')\ndef test_it(count_cases): count_cases(1, 'memory')", "not marked with"),
    ],
)
def test_a_wrong_marker_is_reported(tmp_path, source, says):
    outcome = run(tmp_path, f"import pytest\n{source}\n")
    assert outcome.returncode != 0
    assert says in outcome.stdout + outcome.stderr


def test_the_required_numbers_of_cases():
    """The scorecard requires about 8,400 cases and 1,000 files in the default run, and 16,200 in the nightly run."""
    asked = {name: condition.asked for name, condition in CONDITIONS.items()}
    assert asked.pop("random") == 16_200
    assert asked.pop("files") == 1000
    assert sum(asked.values()) == 8426
