"""The benchmark at tiny sizes: all subjects run, and their output, files and errors are right."""

import importlib.util
import json
import re
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
import typer
from typer.testing import CliRunner

import attn3d
from tests.mechanisms.cases import CASES
from tests.scripts import load


@pytest.fixture(scope="module")
def example():
    return load("examples/benchmark.py")


@pytest.fixture(scope="module")
def measuring(example):
    from examples.benchmarks import measuring  # the script makes it importable

    return measuring


@pytest.fixture(scope="module")
def invoke(example):
    app = typer.Typer()
    app.command()(example.main)

    def run(*arguments):
        words = [str(argument) for argument in arguments]
        with patch.object(sys, "argv", ["benchmark.py", *words]):
            return CliRunner().invoke(app, words)

    return run


@pytest.fixture(scope="module")
def measured(invoke, tmp_path_factory):
    """A function that measures a subject once: the output and the figures."""
    known = {}

    def measure(subject, *mechanisms):
        if subject not in known:
            folder = tmp_path_factory.mktemp(subject)
            file, threads = folder / f"{subject}.json", torch.get_num_threads()
            options = ["--small", "--runs", 2 if subject == "mechanisms" else 1, "--threads", threads, "--json", file]
            options += ["--beside", older_checkout(folder)] if subject == "groups" else []
            options += [word for name in mechanisms for word in ("--mechanism", name)]
            result = invoke("--what", subject, *options)
            assert result.exit_code == 0, result.output
            known[subject] = result.output, json.loads(file.read_text())
        return known[subject]

    return measure


def older_checkout(folder):
    """A stand-in for an older version of the library, in which patterns were called scopes."""
    package = folder / "older" / "attn3d" / "attention"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(OLDER)
    return folder / "older"


OLDER = """
import torch

class VolumeAttention(torch.nn.Module):
    def __init__(self, spatial_dims, heads, *, scope):
        super().__init__()
        assert spatial_dims == 3 and heads == 4 and scope[0] in ("window", "grid", "neighborhood"), scope

    def forward(self, q, k, v, shape):
        assert q.shape == k.shape == v.shape == (1, 4, shape[0] ** 3, 32), q.shape
        assert q.stride()[2:] == (1, shape[0] ** 3), "channels must come first"
        torch.empty(2**22, dtype=torch.uint8)  # the peak memory of the older version
        return q * k * v
"""


def by_measure(found, subject, group):
    return {row["measure"]: row for row in found[subject] if row["group"] == group}


def test_attention(measured):
    output, found = measured("attention")
    assert "bare SDPA" in output
    assert "≤" not in output  # small sizes have no limit
    assert found["small"]
    assert found["threads"] == torch.get_num_threads()
    rows = {(row["what"], row["unit"], row["beside"]): row for row in found["attention"]}
    assert len(rows) == len(found["attention"])
    for subject in ("attend, auto", "attend, chunked", "dot_product", "NonLocal", "Window"):
        units = {unit for what, unit, _ in rows if what.startswith(subject)}
        assert "MiB" in units
        assert len(units) == 2
    for (_, unit, _), row in rows.items():
        assert row["ratio"] == pytest.approx(row["ours"] / row["other"])
        assert row["ratio"] > 0
        assert (row["spread"] is None) == (unit == "MiB")


def test_mechanisms(measured):
    _, found = measured("mechanisms", "se", "sk", "mhsa")
    compiled = [row["what"] for row in found["mechanisms"] if "compiled" in row["measure"]]
    assert all("no graph breaks" in what for what in compiled)
    assert {row["group"] for row in found["mechanisms"]} == {"se", "sk", "mhsa", ""}
    for name in ("se", "sk", "mhsa"):
        rows = by_measure(found, "mechanisms", name)
        assert set(rows) == {
            "saved / map", "saved / plain", "time / plain", "time / floor", "peak / plain", "compiled / plain",
            "compiled / floor",
        }  # fmt: skip
        assert all(row["ratio"] > 0 for row in rows.values())
        for measure in ("time / plain", "compiled / plain", "compiled / floor"):
            assert rows[measure]["spread"][0] <= rows[measure]["spread"][1]
    assert by_measure(found, "mechanisms", "se")["saved / map"]["ratio"] < 0.05
    # The plain form stacks both maps, and the library does not.
    assert by_measure(found, "mechanisms", "sk")["saved / plain"]["ratio"] < 0.1


def test_peers_are_measured_or_listed_as_missing(measured):
    _, found = measured("mechanisms", "se", "sk", "mhsa")
    peers = [row for row in found["mechanisms"] if row["measure"] == "peer"]
    there = {row["beside"] for row in peers if row["ours"] is not None}
    assert there >= {
        "MONAI ChannelSELayer", "MONAI SABlock", "MONAI SpatialAttentionBlock", "PyTorch MultiheadAttention",
        "PyTorch, bare SDPA",
    }  # fmt: skip
    for name, package in (("timm_3d SEModule", "timm_3d"), ("NATTEN na3d", "natten")):
        notes = {row["note"] for row in peers if row["beside"] == name}
        assert notes, name
        if importlib.util.find_spec(package) is None:
            assert notes == {"not installed"}
    assert "timm_3d EcaModule" not in {row["beside"] for row in peers}  # eca was not selected


@pytest.mark.nightly
def test_groups_are_compared_with_an_older_checkout(measured):
    _, found = measured("groups")
    rows = [row for row in found["groups"] if row["group"]]
    assert {row["beside"] for row in rows} == {"checkout older"}
    assert {row["group"] for row in rows} == {
        "windows of 8³, 8³", "windows of 8³, shifted, 8³", "windows of 7³, 6³", "grid of 8³, 8³",
        "neighbourhoods of 7³, 6³", "windows of 8³, bfloat16, 8³", "windows of 8³, shifted, bfloat16, 8³",
    }  # fmt: skip
    threads = found["threads"]
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    for group in {row["group"] for row in rows}:
        measures = by_measure(found, "groups", group)
        assert set(measures) == {
            f"{peak}{step}, {counted}" for peak in ("", "peak, ") for step in ("forward", "training")
        }
        assert measures[f"forward, {counted}"]["unit"] == "s"
        assert 4 <= measures[f"peak, forward, {counted}"]["other"] < 6  # MiB, the peak of the stand-in


@pytest.mark.nightly
def test_groups_are_compared_with_matrix_products_and_swin(measured):
    _, found = measured("groups")
    others = [row for row in found["groups"] if not row["group"]]
    at_peak = [row["what"] for row in others if row["beside"].startswith("its products")]
    assert len(at_peak) == 2
    assert sum("shifted" in what for what in at_peak) == 1
    swin = [row for row in others if row["beside"] == "MONAI Swin WindowAttention"]
    assert len({row["what"] for row in swin}) == 6
    assert [row["unit"] for row in swin] == 6 * ["s", "MiB"]
    assert len(at_peak) + len(swin) == len(others)


def test_insertion(measured):
    _, found = measured("insertion", "eca", "mhsa")
    measures = {f"{net}, {part}" for net in ("UNet", "SegResNet", "DynUNet") for part in ("time", "memory")}
    for name in ("eca", "mhsa"):
        rows = by_measure(found, "insertion", name)
        assert set(rows) == measures
        assert all("windows" in row["what"] for row in rows.values()) == (name == "mhsa")
        assert "at 3 stages" in rows["UNet, time"]["what"]
    assert by_measure(found, "insertion", "mhsa")["UNet, memory"]["ratio"] > 1


def test_scaling(measured):
    output, found = measured("scaling", "gc", "non_local")
    curves = {one["name"]: one for one in found["scaling"]}
    assert [one["name"] for one in found["scaling"] if one["kind"] == "mechanism"] == ["gc", "non_local"]
    assert {"plain, all pairs", "global", "window 8", "axial"} <= set(curves)
    for one in curves.values():
        assert [count for count, *_ in one["points"]] == [64, 128, 256, 512]
    assert curves["plain, all pairs"]["slopes"][1] > 1.8 > curves["non_local"]["slopes"][1]
    assert "slope" in output


def test_the_command_is_saved_with_the_figures(measured):
    _, found = measured("scaling", "gc", "non_local")
    options = f"--small --runs 1 --threads {torch.get_num_threads()} --json "
    assert found["command"].startswith(f"python examples/benchmark.py --what scaling {options}")
    assert found["command"].endswith("scaling.json --mechanism gc --mechanism non_local")
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_measurements_on_a_loaded_machine_have_no_limit(measuring):
    from examples.benchmarks import scaling, tables

    row = measuring.Row("a", "b", 3.0, 2.0, "s", 1.1, (1.4, 1.6), group="se", measure="time")
    for slowdown, ratio, in_a_group in (
        (1.0, "**1.5**", "**1.5** ± 0.1"),
        (2.0, "1.5, loaded", "1.5 ± 0.1, loaded"),
    ):
        saved = row._replace(slowdown=slowdown).saved()
        assert tables.of_rows([saved])[1] == ["a", "b", "3 s", "2 s", ratio, "1.4 to 1.6", "≤ 1.1"]
        assert tables.by_group([saved]) == [["", "time"], ["`se`", in_a_group]]
        assert "**" not in tables.ratio(saved | {"limit": 1.6})
    curve = scaling.Curve("se", "mechanism", [(8, 1.0, 8, 1.0, 1.0), (64, 8.0, 64, 8.0, 8.0)], 2.0)
    assert tables.of_curves([curve.saved()])[1][3:5] == ["8 s", "1.00, loaded"]


def test_the_floor_is_counted_for_every_mechanism():
    assert set(CASES) == set(attn3d.list_attention())
    for name, case in CASES.items():
        floor = case.floor
        for passes, words in ((floor.forward, floor.forward_passes), (floor.backward, floor.backward_passes)):
            words = words.replace("both U", "U, U").replace("both dU", "dU, dU")
            assert len(re.findall(r"\b(?:x|y|dx|dy|U|dU)\b", words)) == passes, name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--what", "attenton"),
            "not one of 'mechanisms', 'attention', 'groups', 'insertion', 'scaling'",
        ),
        (("--what", "mechanisms", "--mechanism", "sse"), "'sse' is not one of"),
        (("--what", "mechanisms", "--shape", 8, 0, 8), "greater than or equal to 1"),
        (("--what", "scaling", "--threads", 1, "--threads", 2), "only groups has several numbers of threads"),
        (("--what", "groups", "--beside", "nowhere"), "nowhere is not a checkout of the library"),
    ],
)
def test_invalid_options_are_refused(invoke, arguments, says):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())


def test_a_checkout_that_does_not_run_is_one_error(invoke, tmp_path):
    package = tmp_path / "attn3d" / "attention"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise ImportError('needs an older torch')")
    options = ("--small", "--runs", 1, "--threads", torch.get_num_threads())
    result = invoke("--what", "groups", *options, "--beside", tmp_path)
    assert result.exit_code == 2
    assert "its process ended with the error above" in " ".join(result.output.replace("│", " ").split())


def test_a_checkout_whose_process_has_ended_is_one_error(example, tmp_path, monkeypatch):
    """Whether it ends before or after the question depends on the machine; here it has ended before."""
    from examples.benchmarks.checkout import Case, checkout

    class Ended(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.wait(timeout=120)

    monkeypatch.setattr(subprocess, "Popen", Ended)
    package = tmp_path / "attn3d"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs an older torch')")
    case = Case("window", {"size": 2}, 2, "float32", training=False, threads=1)
    with pytest.raises(typer.BadParameter, match="its process ended with"), checkout(tmp_path, "cpu") as ask:
        ask("seconds", case)


def test_a_file_is_not_overwritten(invoke, tmp_path):
    file = tmp_path / "figures.json"
    file.write_text("mine")
    result = invoke("--what", "attention", "--small", "--json", file)
    assert result.exit_code == 2
    assert "give a new file" in " ".join(result.output.replace("│", " ").split())
    assert file.read_text() == "mine"


def test_the_volume_can_be_chosen(invoke, tmp_path):
    file, options = tmp_path / "figures.json", ("--shape", 3, 4, 5, "--channels", 6, "--dtype", "bfloat16")
    threads = torch.get_num_threads()
    result = invoke(
        "--what", "scaling", "--mechanism", "se", *options, "--runs", 1, "--threads", threads, "--json", file
    )
    assert result.exit_code == 0, result.output
    (curve,) = json.loads(file.read_text())["scaling"]
    assert [count for count, *_ in curve["points"]][-2:] == [3 * 4 * 2, 60]


def test_all_pairs_are_measured_on_volumes_that_fit(example, measuring):
    from examples.benchmarks import mechanisms

    assert mechanisms.smaller(measuring.Bench("cpu", 1, False)) == (16, 16, 16)
    assert mechanisms.smaller(measuring.Bench("cpu", 1, False, (64, 64, 64))) == (16, 16, 16)
    assert mechanisms.smaller(measuring.Bench("cpu", 1, False, (4, 8, 8))) == (4, 8, 8)


def test_the_page_and_the_charts_have_the_figures(measured, monkeypatch, tmp_path):
    docs = load("docs/benchmarks.py")
    monkeypatch.setattr(docs, "FIGURES", tmp_path)
    assert docs.section("insertion") == ""
    named = {"mechanisms": ("se", "sk", "mhsa"), "insertion": ("eca", "mhsa"), "scaling": ("gc", "non_local")}
    for subject, mechanisms in (named | {"attention": (), "groups": ()}).items():
        _, found = measured(subject, *mechanisms)
        (tmp_path / f"{subject}.json").write_text(json.dumps(found))
        page = docs.section(subject)
        assert found["command"] in page
        assert found["versions"]["torch"] in page
        assert f"(figures/{subject}.json)" in page
        tables = re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE)
        for table in tables:
            assert len({line.count("|") for line in table.splitlines()}) == 1  # all rows have the same number of cells
        (tmp_path / f"{subject}_cuda.json").write_text(json.dumps(found | {"machine": "a GPU"}))
        both = docs.section(subject)
        assert both.startswith(page)
        assert "### a GPU" in both
        assert len(re.findall(r"(?:^\|.*\n?)+", both, re.MULTILINE)) == 2 * len(tables)
    for subject, draw in docs.CHARTS.values():
        assert draw(measured(subject, *named[subject])[1]).axes
