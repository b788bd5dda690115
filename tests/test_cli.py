"""The command line."""

import subprocess
import sys

from typer.testing import CliRunner

from attn3d.cli import app

RUNNER = CliRunner()


def test_plan_prints_a_table():
    result = RUNNER.invoke(app, ["plan", "--shape", "8", "8", "8", "--channels", "8", "--memory", "1MiB"])
    assert result.exit_code == 0
    for word in ("global", "window 8, shifted", "chunked", "reference", "yes", "no", "8 x 8 x 8"):
        assert word in result.stdout


def test_plan_refuses_in_one_line():
    command = [sys.executable, "-m", "attn3d", "plan", "--shape", "8", "8", "8", "--channels", "8", "--memory", "lots"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "`memory` must be bytes" in lines[0]
