"""The benchmark at tiny sizes: all subjects run, and their output, files and errors are right."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
import typer
from matplotlib import pyplot
from matplotlib.text import Text
from typer.testing import CliRunner

from attn3d import list_attention

ROOT = Path(__file__).parents[2]


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return script(ROOT / "examples" / "benchmark.py")


@pytest.fixture(scope="module")
def measuring(example):
    from examples.benchmarks import measuring  # the script makes it importable

    return measuring


@pytest.fixture(scope="module")
def invoke(example):
    app = typer.Typer()
    app.command()(example.main)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def measured(invoke, tmp_path_factory):
    """A function that measures a subject once: the output, the figures, and the folder of the charts."""
    known = {}

    def measure(subject, *mechanisms):
        if subject not in known:
            folder = tmp_path_factory.mktemp(subject)
            file, threads = folder / f"{subject}.json", torch.get_num_threads()
            options = ["--small", "--runs", 2 if subject == "mechanisms" else 1, "--threads", threads, "--json", file]
            options += ["--beside", older_checkout(folder)] if subject == "groups" else []
            options += [word for name in mechanisms for word in ("--mechanism", name)]
            options += [] if subject in ("attention", "groups") else ["--charts", folder / "charts"]
            result = invoke("--what", subject, *options)
            assert result.exit_code == 0, result.output
            known[subject] = result.output, json.loads(file.read_text()), folder
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
    output, found, _ = measured("attention")
    assert "bare SDPA" in output
    assert "within" not in output  # small sizes have no limit
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
    _, found, folder = measured("mechanisms", "se", "sk", "mhsa")
    compiled = [row["what"] for row in found["mechanisms"] if "compiled" in row["measure"]]
    assert all("no graph breaks" in what for what in compiled)
    assert {row["group"] for row in found["mechanisms"]} == {"se", "sk", "mhsa", ""}
    for name in ("se", "sk", "mhsa"):
        rows = by_measure(found, "mechanisms", name)
        assert set(rows) == {
            "kept / map", "kept / plain", "time / plain", "time / floor", "peak / plain", "compiled / plain",
            "compiled / floor",
        }  # fmt: skip
        assert all(row["ratio"] > 0 for row in rows.values())
        for measure in ("time / plain", "compiled / plain", "compiled / floor"):
            assert rows[measure]["spread"][0] <= rows[measure]["spread"][1]
    assert by_measure(found, "mechanisms", "se")["kept / map"]["ratio"] < 0.05
    # The plain form stacks both maps, and the library does not.
    assert by_measure(found, "mechanisms", "sk")["kept / plain"]["ratio"] < 0.1
    assert (folder / "charts" / "mechanisms.svg").exists()


def test_peers_are_measured_or_listed_as_missing(measured):
    _, found, _ = measured("mechanisms", "se", "sk", "mhsa")
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
    _, found, _ = measured("groups")
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
    _, found, _ = measured("groups")
    others = [row for row in found["groups"] if not row["group"]]
    at_peak = [row["what"] for row in others if row["beside"].startswith("its products")]
    assert len(at_peak) == 2
    assert sum("shifted" in what for what in at_peak) == 1
    swin = [row for row in others if row["beside"] == "MONAI Swin WindowAttention"]
    assert len({row["what"] for row in swin}) == 6
    assert [row["unit"] for row in swin] == 6 * ["s", "MiB"]
    assert len(at_peak) + len(swin) == len(others)


def test_insertion(measured):
    _, found, folder = measured("insertion", "eca", "mhsa")
    measures = {f"{net}, {part}" for net in ("UNet", "SegResNet", "DynUNet") for part in ("time", "memory")}
    for name in ("eca", "mhsa"):
        rows = by_measure(found, "insertion", name)
        assert set(rows) == measures
        assert all("windows" in row["what"] for row in rows.values()) == (name == "mhsa")
        assert "at 3 stages" in rows["UNet, time"]["what"]
    assert by_measure(found, "insertion", "mhsa")["UNet, memory"]["ratio"] > 1
    assert (folder / "charts" / "insertion.svg").exists()


def test_scaling(measured):
    output, found, folder = measured("scaling", "gc", "non_local")
    curves = {one["name"]: one for one in found["scaling"]}
    assert [one["name"] for one in found["scaling"] if one["kind"] == "mechanism"] == ["gc", "non_local"]
    assert {"plain, all pairs", "global", "window 8", "axial"} <= set(curves)
    for one in curves.values():
        assert [count for count, *_ in one["points"]] == [64, 128, 256, 512]
    assert curves["plain, all pairs"]["slopes"][1] > 1.8 > curves["non_local"]["slopes"][1]
    assert "its slope" in output
    assert {path.stem for path in (folder / "charts").iterdir()} == {"scaling_mechanisms", "scaling_patterns"}


def test_the_command_is_saved_with_the_figures(measured):
    _, found, _ = measured("scaling", "gc", "non_local")
    threads = torch.get_num_threads()
    assert found["command"] == (
        f"python examples/benchmark.py --what scaling --threads {threads} --runs 1 --mechanism gc "
        "--mechanism non_local --small --json scaling.json --charts charts"
    )
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_measurements_on_a_loaded_machine_have_no_limit(example, measuring):
    from examples.benchmarks import scaling

    docs = script(ROOT / "docs" / "benchmarks.py")
    row = measuring.Row("a", "b", 3.0, 2.0, "s", 1.1, (1.4, 1.6), group="se", measure="time")
    for slowdown, ratio, limit, of_page in (
        (1.0, "1.5", "beyond 1.1", "**1.5**"),
        (2.0, "1.5, loaded", "limit: 1.1", "1.5, loaded"),
    ):
        one = row._replace(slowdown=slowdown)
        cells = [next(iter(column.cells)) for column in example.table("", [one]).columns]
        assert (cells[4], cells[6]) == (ratio, limit)
        assert docs.ratio(one.saved()) == of_page
    curve = scaling.Curve("se", "mechanism", [(8, 1.0, 8, 1.0, 1.0), (64, 8.0, 64, 8.0, 8.0)], 2.0)
    assert docs.ending(curve.saved())[2] == "1.00, loaded"
    assert "1.00, loaded" in [next(iter(column.cells)) for column in example.table_of_curves("", [curve]).columns]


def test_the_floor_is_counted_for_every_mechanism(example):
    from examples.benchmarks.floor import PASSES

    assert set(PASSES) == set(example.attn3d.list_attention())
    for name, floor in PASSES.items():
        for passes, words in ((floor.forward, floor.forward_passes), (floor.backward, floor.backward_passes)):
            words = words.replace("both U", "U, U").replace("both dU", "dU, dU")
            assert len(re.findall(r"\b(?:x|y|dx|dy|U|dU)\b", words)) == passes, name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--what", "attenton"), "must be one of mechanisms, attention, groups, insertion, scaling, got 'attenton'"),
        (("--what", "attention", "--device", "tpu"), "'tpu' is not available"),
        (("--what", "attention", "--shape", 8, 8, 8), "attention does not use this option"),
        (("--what", "scaling", "--what", "attention", "--channels", 8), "attention does not use this option"),
        (("--what", "attention", "--dtype", "float16"), "attention does not use this option"),
        (("--what", "attention", "--mechanism", "se"), "attention does not use this option"),
        (("--what", "attention", "--charts", "charts"), "attention has no chart"),
        (("--what", "groups", "--channels", 8), "groups does not use this option"),
        (("--what", "groups", "--threads", 0), "greater than or equal to 1"),
        (("--what", "scaling", "--threads", 1, "--threads", 2), "scaling needs a single number of threads"),
        (("--what", "groups", "--what", "scaling", "--beside", ROOT), "scaling is not compared with an older checkout"),
        (("--what", "groups", "--beside", "nowhere"), "nowhere is not a checkout of the library"),
        (("--what", "mechanisms", "--mechanism", "sse"), "got 'sse'"),
        (("--what", "mechanisms", "--shape", 8, 0, 8), "must be positive"),
        (("--what", "insertion", "--shape", 16, 16, 12), "insertion needs multiples of 8, got (16, 16, 12)"),
        (("--what", "insertion", "--channels", 12), "insertion needs multiples of 8, got (12,)"),
        (("--what", "mechanisms", "--shape", 8, 8, 8, "--small"), "cannot be used with --shape"),
        (("--what", "mechanisms", "--dtype", "int8"), "int8"),
        ((), "--what"),
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


def test_the_page_has_the_figures(measured, monkeypatch, tmp_path):
    docs = script(ROOT / "docs" / "benchmarks.py")
    monkeypatch.setattr(docs, "FIGURES", tmp_path)
    assert docs.table("insertion") == "`insertion`: not measured yet."
    named = {"mechanisms": ("se", "sk", "mhsa"), "insertion": ("eca", "mhsa"), "scaling": ("gc", "non_local")}
    for subject, mechanisms in (named | {"attention": (), "groups": ()}).items():
        _, found, _ = measured(subject, *mechanisms)
        (tmp_path / f"{subject}.json").write_text(json.dumps(found))
        page = docs.table(subject)
        assert found["command"] in page
        assert found["versions"]["torch"] in page
        assert "not measured" in page
        for table in re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE):
            assert len({line.count("|") for line in table.splitlines()}) == 1  # all rows have the same number of cells
        (tmp_path / f"{subject}_cuda.json").write_text(json.dumps(found))  # as if measured on a GPU
        assert "not measured" not in docs.table(subject)


def test_a_missed_limit_is_bold(measuring):
    docs = script(ROOT / "docs" / "benchmarks.py")
    row = measuring.Row("a", "b", 3.0, 2.0, "s", 1.1, (1.4, 1.6), group="se", measure="time").saved()
    assert docs.by_group([row], []).splitlines()[-1] == "| `se` | **1.5** ± 0.1 | not measured |"
    assert (
        docs.flat([row], []).splitlines()[-1] == "| a | b | 3 s | 2 s | **1.5** | 1.4 to 1.6 | ≤ 1.1 | not measured |"
    )
    assert docs.by_group([row | {"limit": 1.6}], []).splitlines()[-1] == "| `se` | 1.5 ± 0.1 | not measured |"


def test_the_page_of_charts_shows_all():
    from examples.benchmarks.charts import CHARTS

    page = (ROOT / "docs" / "charts.md").read_text()
    for subject, charts in CHARTS.items():
        assert all(f"](figures/{name}" in page for name in (*(f"{chart}.svg" for chart in charts), f"{subject}.json"))


@pytest.mark.parametrize("count", [2, 10, 25])
def test_curves_can_be_distinguished_and_their_names_are_inside_the_chart(count):
    from examples.benchmarks.charts import growth

    points = [[size**3, 1e-3 * size, 1000 * size, 1e-3 * size, 1e-3 * size] for size in (8, 16)]
    curves = [{"kind": "mechanism", "name": f"mechanism {index}", "points": points} for index in range(count)]
    surroundings = {"machine": "a machine", "threads": 1, "versions": {"torch": "2"}, "dtype": "float32"}
    figure = growth({"scaling": curves} | surroundings, "mechanism", "Curves").figure
    figure.canvas.draw()
    for index in range(count):
        (name,) = [text for text in figure.findobj(Text) if text.get_text() == f"mechanism {index}"]
        box = name.get_window_extent()
        assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[1].lines}
    assert len(styles) == count
    pyplot.close(figure)


@pytest.mark.parametrize("subject", ["mechanisms", "insertion"])
def test_every_text_is_inside_the_chart(subject):
    from examples.benchmarks.charts import CHARTS

    found = json.loads((ROOT / "docs" / "figures" / f"{subject}.json").read_text())
    longest = max(list_attention(), key=len)
    rows = [row for row in found[subject] if row["group"] != longest]
    found[subject] = [row | {"group": longest if row["group"] == "danet" else row["group"]} for row in rows]
    (draw,) = CHARTS[subject].values()
    figure = draw(found).figure
    figure.canvas.draw()
    for text in figure.findobj(Text):
        if text.get_text():
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text.get_text()
    pyplot.close(figure)
