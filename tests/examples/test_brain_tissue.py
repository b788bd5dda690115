import json
import runpy
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import typer
from typer.testing import CliRunner

from attn3d.segmentation import Run
from tests.scripts import ROOT, load
from tests.segmentation.volumes import AFFINES, head, scan

SCRIPT = ROOT / "examples" / "brain_tissue.py"
BACK = (slice(None), slice(None, 20), slice(None))


@pytest.fixture(scope="module")
def example():
    return load("examples/brain_tissue.py")


@pytest.fixture(scope="module")
def app(example):
    app = typer.Typer()
    app.command()(example.main)
    return app


def invoke(app, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_pair(folder, name="oblique"):
    image, labels = head(AFFINES[name])
    nib.save(scan(image, AFFINES[name]), folder / "scan.nii.gz")
    nib.save(scan(labels, AFFINES[name], code=1), folder / "label.nii.gz")
    return folder / "scan.nii.gz", folder / "label.nii.gz"


def check_results(out, scan_path):
    scores = json.loads((out / "metrics.json").read_text())["held_out"]
    for degraded in ("clean", "degraded"):
        assert list(scores[degraded]) == ["network", "network, masked", "mixture, masked"]
        for tissues in scores[degraded].values():
            assert list(tissues) == ["CSF", "grey matter", "white matter"]
            for score in tissues.values():
                assert 0 <= score["dice"] <= 1
                assert np.isfinite(list(score.values())).all()
        masked = scores[degraded]["network, masked"].values()
        assert sum(score["volume_ml"] for score in masked) <= 1.001 * sum(score["reference_ml"] for score in masked)
    before, after = nib.load(scan_path), nib.load(out / "segmentation.nii.gz")
    assert after.get_data_dtype() == np.uint8
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    assert (out / "overlay.png").read_bytes().startswith(b"\x89PNG")
    run = Run.open(out / "run")
    assert run.config.network == "ResidualUNet"
    assert run.finished
    assert not [entry for entry in out.rglob("*") if "unfinished" in entry.name]


def test_the_example_runs_on_a_brain(app, tmp_path):
    out = tmp_path / "deep" / "results"
    result = invoke(app, "--iterations", 2, "--resolution", 8, "--out", out)
    assert result.exit_code == 0, result.output
    for word in ("Held-out anterior 40%", "mixture, masked", "white matter", "Surface"):
        assert word in result.output
    check_results(out, out / "mni152_t1.nii.gz")


def test_a_pair_of_files(app, tmp_path):
    image, label = write_pair(tmp_path)
    out = tmp_path / "results"
    result = invoke(
        app, "--iterations", 1, "--resolution", 4, "--attention", "none", "--data", image, label, "--out", out
    )
    assert result.exit_code == 0, result.output
    check_results(out, image)


def test_a_scan_in_another_format_than_nifti(app, tmp_path):
    image, label = write_pair(tmp_path)
    sitk.WriteImage(sitk.ReadImage(image), tmp_path / "scan.nrrd")
    data = "--data", tmp_path / "scan.nrrd", label
    result = invoke(app, "--iterations", 1, "--resolution", 4, "--attention", "none", *data, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "segmentation.nii.gz").affine, nib.load(image).affine)


def damage(name, folder):
    """Writes a pair of files with a fault; returns it with a part of the expected message."""
    image, label = write_pair(folder)
    labels = np.asarray(nib.load(label).dataobj)
    affine = AFFINES["oblique"]
    if name == "unreadable":
        image.write_bytes(image.read_bytes()[:1000])
        return image, label, "scan.nii.gz"
    if name == "4-D":
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.float32), affine), image)
        return image, label, "3-D"
    if name == "shape":
        nib.save(scan(labels[1:], affine), label)
        return image, label, "shape"
    if name == "moved":
        nib.save(scan(labels, affine + 5 * np.eye(4, k=3)), label)
        return image, label, "5 mm off"
    if name == "unknown value":
        nib.save(scan(labels * 2, affine), label)
        return image, label, "value 4"
    if name == "empty":
        nib.save(scan(labels * 0, affine), label)
        return image, label, "the label is empty"
    nib.save(scan(labels * np.float32(0.996), affine), label)
    return image, label, "value 0.996"


@pytest.mark.parametrize("name", ["unreadable", "4-D", "shape", "moved", "unknown value", "empty", "fractions"])
def test_a_pair_that_cannot_be_used_is_one_line_and_exit_code_2(app, tmp_path, name):
    image, label, says = damage(name, tmp_path)
    check_refused(app, tmp_path, says, "--data", image, label)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--network", "BasicUnet"), "BasicUNet"),
        (("--attention", "cban"), "cbam"),
        (("--at", "encodr"), "encoder"),
    ],
    ids=["network", "attention", "at"],
)
def test_an_unknown_name_is_refused_with_the_nearest(app, tmp_path, arguments, says):
    check_refused(app, tmp_path, says, *arguments)


def check_refused(app, folder, says, *arguments):
    result = invoke(app, *arguments, "--iterations", 1, "--out", folder / "results")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert says in result.stderr
    assert not (folder / "results").exists()


def test_an_output_that_cannot_be_a_folder_is_refused(app, tmp_path):
    (tmp_path / "results").write_text("a file")
    result = invoke(app, "--data", *write_pair(tmp_path), "--out", tmp_path / "results")
    assert result.exit_code == 2
    assert str(tmp_path / "results") in result.stderr
    assert (tmp_path / "results").read_text() == "a file"


def test_a_missing_file_from_the_command_line(tmp_path, monkeypatch, capsys):
    arguments = [SCRIPT, "--data", "no.nii.gz", "none.nii.gz", "--out", tmp_path / "results"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "brain_tissue: no.nii.gz: cannot be read: No such file or directory\n"
    assert not (tmp_path / "results").exists()


def pair(name):
    image, labels = head(AFFINES[name])
    return scan(image, AFFINES[name]), scan(labels, AFFINES[name])


@pytest.mark.parametrize("name", AFFINES)
def test_the_split_is_along_the_anterior_posterior_axis(name, example):
    _, label = pair(name)
    posterior, anterior = example.hold_out_anterior(label, 0.4)
    labels = np.asarray(label.dataobj)
    part = np.zeros(labels.shape, int)
    part[posterior] += 1
    part[anterior] += 2
    assert set(np.unique(part)) == {1, 2}, "each voxel is in one part"

    y = nib.affines.apply_affine(label.affine, np.argwhere(np.ones(labels.shape)))[:, 1]
    assert y[part.ravel() == 1].mean() < y[part.ravel() == 2].mean()
    along = next(axis for axis, cut in enumerate(posterior) if cut != slice(None))
    extent = np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {along})))
    behind = labels[posterior].shape[along] - (extent[0] if posterior[along].start is None else 0)
    if posterior[along].start is not None:
        behind = extent[-1] + 1 - posterior[along].start
    assert abs(behind - 0.6 * extent.size) <= 0.5 + 1e-9


def test_a_label_too_thin_to_split_is_refused(example):
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[:, 2] = 1
    with pytest.raises(ValueError, match="must span more voxels from back to front"):
        example.hold_out_anterior(scan(labels, AFFINES["RAS"]), 0.4)


def test_a_degraded_scan_is_worse_and_always_the_same(example):
    image, label = pair("RAS")
    state = torch.get_rng_state()
    worse = example.degrade(image)
    assert torch.equal(torch.get_rng_state(), state), "the random state must not change"
    np.testing.assert_array_equal(worse.get_fdata(), example.degrade(image).get_fdata())
    np.testing.assert_array_equal(worse.affine, image.affine)
    inner = np.asarray(label.dataobj) == 3

    def variation(volume):
        intensities = volume.get_fdata()
        return intensities[inner].std() / intensities[np.asarray(label.dataobj) > 0].std()

    assert variation(worse) > 1.5 * variation(image)


def test_a_degraded_scan_keeps_a_hot_voxel_in_its_place(example):
    data = np.random.default_rng(0).normal(100, 10, (24, 24, 24)).astype(np.float32)
    data[3, 4, 5] = 3e6
    assert np.abs(example.degrade(scan(data, AFFINES["RAS"])).get_fdata()).max() < 12


@pytest.mark.parametrize("sign", [1, -1], ids=["bright", "dark"])
def test_classes_are_found_in_any_order_of_intensity(sign, example):
    image, labels = head(AFFINES["RAS"])
    found = example.gaussian_mixture(scan(sign * image, AFFINES["RAS"]), scan(labels, AFFINES["RAS"]), BACK)
    assert found.dtype == np.uint8
    assert (found == labels).mean() > 0.999


def test_the_mixture_is_the_same_in_every_call(example):
    image, labels = head(AFFINES["RAS"])
    noisy = scan(image + np.random.default_rng(0).normal(0, 60, image.shape), AFFINES["RAS"])
    found = [example.gaussian_mixture(noisy, scan(labels, AFFINES["RAS"]), BACK) for _ in range(6)]
    assert all(np.array_equal(one, found[0]) for one in found)


def test_only_labels_of_the_training_part_are_predicted(example):
    image, labels = head(AFFINES["RAS"])
    labels = np.where(labels == 2, 1, labels)
    found = example.gaussian_mixture(scan(image, AFFINES["RAS"]), scan(labels, AFFINES["RAS"]), BACK)
    assert set(np.unique(found)) == {0, 1, 3}
