"""Kills, full disks and odd inputs: a few of each in the default run, all in the nightly run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import attn3d
from tests.faults.sweeps import spread

ROOT = Path(attn3d.__file__).parents[1]


def tried(tmp_path, *arguments):
    """Runs ``python -m tests.faults`` and returns its rows."""
    command = [sys.executable, "-m", "tests.faults", "--json", str(tmp_path / "faults.json"), *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (tmp_path / "faults.json").exists(), ended.stderr[-3000:]
    return json.loads((tmp_path / "faults.json").read_text())["rows"]


def test_some_faults_of_each_kind(tmp_path):
    rows = tried(tmp_path, "--points", "1", "--only", "predict", "evaluate")
    assert len(rows) == 8
    assert all(row["tried"] for row in rows)
    assert not [problem for row in rows for problem in row["problems"]]
    assert sum(row["wrong"] for row in rows) == 0


@pytest.mark.nightly
def test_all_faults(tmp_path):
    rows = tried(tmp_path)
    assert len(rows) == 16
    assert not [problem for row in rows for problem in row["problems"]]
    assert sum(row["tried"] for row in rows) > 500


def test_points_are_spread():
    assert spread(range(10), None) == spread(range(10), 12) == [*range(10)]
    assert spread(range(10), 1) == [4]
    assert spread(range(9), 3) == [1, 4, 7]
