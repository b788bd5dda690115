"""The benchmark at sizes of no meaning: that all of it runs, and what it says."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmark.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def invoke(example):
    app = typer.Typer()
    app.command()(example.main)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_attention(invoke, tmp_path):
    file = tmp_path / "attention.json"
    threads = torch.get_num_threads()
    result = invoke("--what", "attention", "--small", "--runs", 1, "--threads", threads, "--json", file)
    assert result.exit_code == 0, result.output
    assert "bare SDPA" in result.output
    assert "within" not in result.output  # small sizes are held to no limit
    found = json.loads(file.read_text())
    assert found["small"]
    assert found["threads"] == threads
    rows = {(row["what"], row["unit"], row["beside"]): row for row in found["attention"]}
    assert len(rows) == len(found["attention"])
    for subject in ("attend, auto", "attend, chunked", "dot_product", "NonLocal", "Window"):
        units = {unit for what, unit, _ in rows if what.startswith(subject)}
        assert "MiB" in units
        assert len(units) == 2
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["ours"] / row["other"])
        assert row["ratio"] > 0


def test_the_plain_block_is_the_block(example):
    """So that what is compared is the same function."""
    x = torch.randn(1, 8, 3, 4, 5)
    plain, ours = example.PlainNonLocal(8), example.attn3d.NonLocal(3, 8)
    layers = [plain.query, plain.key, plain.value, *plain.out]
    for layer, own in zip(layers, [ours.query, ours.key, ours.value, ours.out, ours.norm], strict=True):
        for parameter, of_own in zip(layer.parameters(), own.parameters(), strict=True):
            of_own.data.copy_(parameter.data.view_as(of_own))
    torch.testing.assert_close(plain(x), ours(x))


def test_turns_are_taken_and_the_median_is_given(example, monkeypatch):
    calls, clock = [], iter([0, 1, 10, 30, 100, 103, 200, 210, 300, 302, 400, 425])
    monkeypatch.setattr(example.time, "perf_counter", lambda: next(clock))
    first, second = (lambda name=name: calls.append(name) for name in "ab")
    assert example.Bench("cpu", 3, False).seconds(first, second) == [2, 20]
    assert "".join(calls) == "ab" + "ababab"


def test_the_peak_is_what_is_alive_at_once(example):
    def run():
        for _ in range(3):
            torch.empty(2**20)  # 4 MiB, one after another
        return torch.empty(2**18), torch.empty(2**18)

    assert example.Bench("cpu", 1, False).peak(run) == 4 * 2**20


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--what", "attenton"), "'attenton' is none of attention"),
        (("--what", "attention", "--device", "tpu"), "'tpu' is not at hand"),
        ((), "--what"),
    ],
)
def test_what_cannot_be_measured_is_refused(invoke, arguments, says):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_a_file_is_not_overwritten(invoke, tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("mine")
    result = invoke("--what", "attention", "--small", "--json", file)
    assert result.exit_code == 2
    assert "give a new file" in " ".join(result.output.replace("│", " ").split())
    assert file.read_text() == "mine"
