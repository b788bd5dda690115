"""Every example, at a small size."""

import itertools
import json
import runpy
import sys
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import typer
from monai.data import get_track_meta, set_track_meta

from attn3d.segmentation import HAEMORRHAGES, portable
from examples.benchmarks import paired_difference, task04_dynunet
from tests.scripts import ROOT, load
from tests.segmentation.layouts import task04
from tests.segmentation.volumes import AFFINES, write_heads

EXAMPLES = ROOT / "examples"
TESTED_ELSEWHERE = {"brain_tissue", "benchmark", "onnx_runtime", "sharded_volume"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("data"), ("RAS", "LAS, 5 mm slices", "oblique", "permuted"))


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A function that loads the main function of a script; runs in its own folder."""
    monkeypatch.chdir(tmp_path)

    def main_of(name):
        return load(f"examples/{name}.py").main

    return main_of


def test_every_example_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")} | TESTED_ELSEWHERE
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_haemorrhage(example, tmp_path, capsys):
    example("haemorrhage")(attention="coord", at=" skip", cases=2, test_cases=2, epochs=1, out=tmp_path / "all")
    result = json.loads((tmp_path / "all" / "result.json").read_text())
    assert result["simulated"]
    assert "any label" in result["dice"]
    assert set(result["dice"]) <= {*HAEMORRHAGES.values(), "any label", "mean of kinds"}
    for row in result["dice"].values():
        assert 0 <= row["network"] <= 1
        assert 0 <= row["threshold"] <= 1
    scores = json.loads((tmp_path / "all" / "scores" / "scores.json").read_text())
    assert scores["simulated"]
    assert result["dice"]["any label"]["network"] == scores["overall"]["any label"]["dice_with"]
    for path in (tmp_path / "all" / "unseen" / "labelsTr").iterdir():
        found, true = nib.load(tmp_path / "all" / "predictions" / path.name), nib.load(path)
        assert found.shape == true.shape
        np.testing.assert_array_equal(found.affine, true.affine)
    assert "simulated" in capsys.readouterr().out
    assert "imulated" in (tmp_path / "all" / "run" / "report.html").read_text()


def test_own_data(example, data, tmp_path, capsys):
    example("own_data")(data=data, scans=data / "images", out=tmp_path / "all", epochs=1)
    assert len(list((tmp_path / "all" / "predictions").glob("*.nii.gz"))) == 4
    assert "4 scans segmented" in capsys.readouterr().out


@pytest.mark.nightly
def test_compare_mechanisms(example, data, tmp_path, capsys):
    example("compare_mechanisms")(
        mechanisms="eca", at="encoder", seeds=2, epochs=1, cases=4, data=data, out=tmp_path / "all"
    )
    printed = capsys.readouterr().out
    assert "the noise" in printed
    assert (tmp_path / "all" / "comparison.png").exists()


def test_monai_pipeline(example, tmp_path, capsys):
    example("monai_pipeline")(steps=2, resolution=3, out=tmp_path)
    assert "white matter" in capsys.readouterr().out


def test_torchio_pipeline(example, tmp_path):
    example("torchio_pipeline")(epochs=1, patches=2, resolution=4, out=tmp_path)
    found, true = (nib.load(tmp_path / name) for name in ("segmentation.nii.gz", "mni152_tissues.nii.gz"))
    assert found.shape == true.shape
    np.testing.assert_allclose(found.affine, true.affine)


def test_pretrained(example, tmp_path, capsys):
    example("pretrained")(steps=4, resolution=4, out=tmp_path)
    printed = capsys.readouterr().out
    assert "the same output as before: True" in printed
    gates = json.loads(printed.split("gates, initially 0: ")[1].splitlines()[0])
    assert len(gates) == 6
    assert all(gates), "every gate must be trained"


def test_whole_volume(example, capsys):
    example("whole_volume")(size=12, channels=8)
    printed = capsys.readouterr().out
    assert "sum to 1.0000" in printed
    estimated, measured = (float(line.split(": ")[1].split(" MiB")[0]) for line in printed.splitlines()[1:3])
    assert measured == pytest.approx(estimated, rel=0.1, abs=1)


def test_task04_dynunet(tmp_path, monkeypatch, capsys):
    task04(tmp_path / "Task04", cases=3)
    (tmp_path / "run").mkdir()
    split = {"training": ["hippocampus_001", "hippocampus_002"], "validation": ["hippocampus_003"]}
    (tmp_path / "run" / "split.json").write_text(json.dumps(split))
    before, seconds = get_track_meta(), itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(seconds), perf_counter=lambda: next(seconds))
    monkeypatch.setattr(task04_dynunet, "time", clock)  # a step takes a second
    try:
        task04_dynunet.main(tmp_path / "Task04", tmp_path / "run", minutes=3 / 60, out=tmp_path / "out")
    finally:
        set_track_meta(before)
    printed = capsys.readouterr().out
    assert "2 steps" in printed.splitlines()
    assert "1.00 seconds a case to predict" in printed
    found = nib.load(tmp_path / "out" / "hippocampus_003.nii.gz")
    image = nib.load(tmp_path / "Task04" / "imagesTr" / "hippocampus_003.nii.gz")
    assert found.shape == image.shape
    np.testing.assert_array_equal(found.affine, image.affine)
    assert set(np.unique(found.dataobj)) <= {0, 1, 2}


def test_paired_difference(tmp_path, capsys):
    def scores(name, **dice):
        cases = {case: {"core": {"dice": one}} for case, one in dice.items()}
        (tmp_path / name).write_text(json.dumps({"labels": {"core": 1}, "cases": cases}))
        return tmp_path / name

    one = scores("one.json", a=0.5, b=0.7, c=0.9)
    paired_difference.main(one, scores("other.json", c=0.9, a=0.6, b=0.9))
    assert capsys.readouterr().out == "core: +0.100 ± 0.248, 3 cases\n"  # 4.303 * 0.1 / sqrt(3)
    paired_difference.main(one, scores("third.json", b=0.7, c=0.9, d=0.5))
    assert capsys.readouterr().out.splitlines()[0] == "2 cases are in only one of the files and left out"
    with pytest.raises(typer.BadParameter, match="the same labels and two or more cases in common"):
        paired_difference.main(one, scores("fourth.json", a=0.5))


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_sharded_volume_prints_how_to_run_it(arguments, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["sharded_volume.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLES / "sharded_volume.py"))
    said = capsys.readouterr().out if arguments else stopped.value.code
    assert "torchrun --nproc-per-node 2 examples/sharded_volume.py" in said
    assert not (arguments and stopped.value.code)


def test_onnx_runtime_writes_both_forms_of_the_affine(tmp_path, monkeypatch):
    """With a network that only returns zeros, in place of ONNX Runtime."""

    def session(_):
        return SimpleNamespace(run=lambda _, inputs: [np.zeros((len(inputs["image"]), 2, *inputs["image"].shape[2:]))])

    fakes = {"onnxruntime": SimpleNamespace(InferenceSession=session)}
    for name, module in (fakes | {"scripts": ModuleType("scripts"), "scripts.portable": portable}).items():
        monkeypatch.setitem(sys.modules, name, module)
    facts = {"spacing": [1, 1, 5], "windows": [[40, 80]], "patch_size": [8, 8, 4], "multiple": [1, 1, 1]}
    (tmp_path / "metadata.json").write_text(json.dumps(facts | {"values": [0, 1], "regions": False}))
    affine = AFFINES["oblique"]
    nib.save(nib.Nifti1Image(np.zeros((12, 10, 6), np.float32), affine), tmp_path / "scan.nii.gz")
    monkeypatch.setattr(sys, "path", [*sys.path])
    files = [str(tmp_path), str(tmp_path / "labels.nii.gz"), str(tmp_path / "scan.nii.gz")]
    monkeypatch.setattr(sys, "argv", ["onnx_runtime.py", *files])
    runpy.run_path(str(EXAMPLES / "onnx_runtime.py"))
    found = nib.load(tmp_path / "labels.nii.gz")
    for form, code in (found.get_sform(coded=True), found.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(form, affine, atol=1e-4)
    assert found.header.get_xyzt_units()[0] == "mm"
