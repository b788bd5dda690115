"""Labels have the geometry of the scan, and a case that fails does not stop the others."""

import csv
import gc
import json
import logging
import os
import platform
import subprocess
import sys
import tracemalloc
from itertools import accumulate, cycle
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError, precision, predict, prediction, processes
from attn3d.segmentation.datasets import find_scans, read_case_image
from attn3d.segmentation.datasets.predictions import check_beside
from attn3d.segmentation.io.tables import add_row
from tests.segmentation.runs import LABELS, SHAPE, bright, change_json, make_run, save
from tests.segmentation.volumes import AFFINES, scan


@pytest.mark.parametrize("stored", ["float32", "int16", "uint8", "float64"])
@pytest.mark.parametrize("geometry", AFFINES)
def test_a_marked_block_keeps_its_place(geometry, stored, run, tmp_path):
    """In mm, and voxel by voxel except for the border, which interpolation blurs."""
    data, block = bright()
    image = scan(data if stored != "int16" else (data + 1000) * 2, AFFINES[geometry])
    image.header.set_data_dtype(stored)
    if stored == "int16":
        image.header.set_slope_inter(0.5, -1000)  # nibabel scales and shifts the stored values on reading
    path = tmp_path / "scan.nii.gz"
    nib.save(image, path)
    np.testing.assert_allclose(nib.load(path).get_fdata(), data)

    found = predict(run.folder, path, tmp_path / "out", quiet=True)
    result, original = nib.load(found.written["scan"]), nib.load(path)
    assert result.get_data_dtype() == np.uint8
    assert result.shape == SHAPE
    np.testing.assert_array_equal(result.affine, original.affine)
    labels = np.asarray(result.dataobj)
    assert set(np.unique(labels)) == {0, 2}
    true = np.zeros(SHAPE, bool)
    true[block] = True
    places = [nib.affines.apply_affine(original.affine, np.argwhere(mask)).mean(0) for mask in (labels == 2, true)]
    assert np.linalg.norm(places[0] - places[1]) < 0.5 * nib.affines.voxel_sizes(original.affine).max()
    grown = np.zeros(SHAPE, bool)
    grown[tuple(slice(one.start - 1, one.stop + 1) for one in block)] = True
    assert not (labels[~grown]).any()


def test_a_batch_goes_on_after_failed_cases(run, tmp_path):
    scans = save(tmp_path / "scans", first=bright()[0], flat=np.zeros(SHAPE, np.float32), last=bright()[0])
    (scans / "torn.nii.gz").write_bytes((scans / "first.nii.gz").read_bytes()[:200])
    found = predict(run.folder, scans, tmp_path / "out", quiet=True)
    assert sorted(found.written) == ["first", "last"]
    assert sorted(path.rsplit("/", 1)[1] for path in found.failed) == ["flat.nii.gz", "torn.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first.nii.gz", "last.nii.gz"]


def test_at_least_one_run_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"`runs` must name at least one folder of a run, got \[\]"):
        predict([], save(tmp_path / "scans", one=bright()[0]), tmp_path / "out")
    with pytest.raises(ValueError, match="`runs` must name at least one folder of a run, got <generator"):
        predict((run for run in []), tmp_path / "scans", tmp_path / "out")


def test_a_scan_without_air_is_named_by_a_run_on_ct(run, tmp_path, caplog):
    """Runs without this entry in their fingerprint do not warn."""
    scans = save(tmp_path / "scans", mri=bright()[0], ct=bright()[0] - 1000)
    predict(run.folder, scans, tmp_path / "first", quiet=True)
    assert not caplog.records
    (run.folder / "fingerprint.json").write_text(json.dumps({"darkest": [-1000, -990]}))
    predict(run.folder, scans, tmp_path / "second", quiet=True)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{scans / 'mri.nii.gz'}: has no air")
    (run.folder / "fingerprint.json").write_text("[]")
    predict(run.folder, scans, tmp_path / "third", quiet=True)
    (run.folder / "fingerprint.json").unlink()
    assert len(predict(run.folder, scans, tmp_path / "fourth", quiet=True).written) == 2
    assert len(caplog.records) == 1


def test_existing_labels_are_skipped_but_counted(run, tmp_path):
    """A batch that was killed or extended is completed; its table of statistics has all cases."""

    def table():
        rows = csv.DictReader((out / "statistics.csv").open())
        return {row["case"]: {name: float(row[f"{name} ml"]) for name in LABELS.names} for row in rows}

    scans = save(tmp_path / "scans", one=bright()[0], two=bright(size=(8, 8, 6))[0])
    out = tmp_path / "out"
    first = predict(run.folder, scans, out, statistics=True, quiet=True)
    before = (out / "one.nii.gz").stat().st_mtime_ns
    assert table() == {name: pytest.approx(volumes, abs=1e-3) for name, volumes in first.volume_ml.items()}
    (out / "statistics.csv").unlink()  # as after a kill before it was written
    nib.save(scan(bright(size=(6, 6, 6))[0], AFFINES["RAS"]), scans / "three.nii.gz")
    found = predict(run.folder, scans, out, statistics=True, quiet=True)
    assert not found.failed
    assert [*found.written] == ["three"]
    assert sorted(found.skipped) == ["one", "two"]
    assert (out / "one.nii.gz").stat().st_mtime_ns == before
    assert {name: found.volume_ml[name] for name in ("one", "two")} == first.volume_ml
    assert table() == {name: pytest.approx(volumes, abs=1e-3) for name, volumes in found.volume_ml.items()}
    again = predict(run.folder, scans / "two.nii.gz", out, statistics=True, quiet=True)
    assert [*again.skipped] == ["two"]
    assert list(table()) == ["one", "three", "two"]
    (out / f".unfinished-{platform.node()}@{os.getpid()}-old.nii.gz").touch()  # of an earlier process with this ID
    assert predict(run.folder, scans, out, overwrite=True, quiet=True).written.keys() == {"one", "two", "three"}
    assert not list(out.glob(".unfinished-*"))


@pytest.mark.parametrize(
    ("requested", "missing"), [("probabilities", "one_probabilities.nii.gz"), ("preview", "one.png")]
)
def test_requested_files_beside_existing_labels_must_exist(requested, missing, run, tmp_path):
    scans, out = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0]), tmp_path / "out"
    predict(run.folder, scans, out, quiet=True)
    found = predict(run.folder, scans, out, quiet=True, **{requested: True})
    assert not found.skipped
    problem = "does not exist, but the labels do; segment the scan again (--overwrite)"
    assert found.failed == {str(out / missing): problem}
    assert predict(run.folder, scans, out, quiet=True, overwrite=True, **{requested: True}).written
    assert predict(run.folder, scans, out, quiet=True, **{requested: True}).skipped


def test_labels_of_another_run_are_not_counted(run, tmp_path):
    """Its names would be given to other values."""
    scans, out = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0]), tmp_path / "out"
    path = predict(run.folder, scans, out, quiet=True).written["one"]
    labels = np.asarray(nib.load(path).dataobj)
    nib.save(nib.Nifti1Image(np.where(labels, 3, 0).astype(np.uint8), nib.load(path).affine), path)
    found = predict(run.folder, scans, out, quiet=True)
    problem = "has the value 3, which the run never writes; segment it again (--overwrite)"
    assert (found.failed, found.volume_ml) == ({str(path): problem}, {})


def test_after_a_kill_no_old_labels_are_beside_new_files(run, tmp_path, monkeypatch):
    """The next run would count the case as complete. A scan that fails keeps its old labels."""
    scans, out = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0]), tmp_path / "out"
    predict(run.folder, scans, out, quiet=True)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    for name, left in (("segment", True), ("write_label", False)):
        with monkeypatch.context() as patch:
            patch.setattr(prediction, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                predict(run.folder, scans, out, probabilities=True, overwrite=True, quiet=True)
        assert (out / "one.nii.gz").exists() == left
    assert predict(run.folder, scans, out, probabilities=True, quiet=True).written


def test_after_a_kill_no_images_are_beside_labels_of_another_run(run, tmp_path, monkeypatch):
    scans, out = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0]), tmp_path / "out"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "write_label", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict(run.folder, scans, out, probabilities=True, uncertainty=True, quiet=True)
    assert len([*out.glob("one_*.nii.gz")]) == 2
    (out / "one.png").touch()  # it may be the user's
    assert predict(run.folder, scans, out, quiet=True).written
    assert sorted(path.name for path in out.glob("one*")) == ["one.nii.gz", "one.png"]


def test_the_same_run_twice_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"`runs` has the run .*run twice; give each run once"):
        predict([run.folder, run.folder / ".." / "run"], save(tmp_path / "scans", one=bright()[0]), tmp_path / "out")


def test_the_bar_shows_the_progress_within_a_scan(run, tmp_path, monkeypatch):
    shown, show = [], processes.Processes.show
    monkeypatch.setattr(processes.Processes, "show", lambda self, share: shown.append(share) or show(self, share))
    predict(run.folder, save(tmp_path / "scans", one=bright()[0], two=bright()[0]), tmp_path / "out", quiet=True)
    first, second = shown[: len(shown) // 2], shown[len(shown) // 2 :]
    assert first == second == sorted(first)
    assert len(first) > 8
    assert first[0] == 0 < first[-1] < 1


def test_a_scan_with_the_name_of_a_map_is_refused(run, tmp_path):
    scans, out = save(tmp_path / "scans", x=bright()[0], x_entropy=bright()[0]), tmp_path / "out"
    with pytest.raises(FileError, match=r"x_entropy.nii.gz: its labels would have the name of the entropy of .*x.ni"):
        predict(run.folder, scans, out, quiet=True)
    assert not out.exists()


def test_images_of_earlier_labels_are_removed(run, tmp_path):
    scans, out = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0]), tmp_path / "out"
    assert not predict(run.folder, scans, out, probabilities=True, uncertainty=True, preview=True, quiet=True).failed
    (out / "one.dcm").touch()
    assert (out / "one_probabilities.nii.gz").exists()
    assert not predict(run.folder, scans, out, overwrite=True, quiet=True).failed
    assert sorted(path.name for path in out.glob("one*")) == ["one.nii.gz"]


def test_scans_are_not_replaced_by_labels(run, tmp_path):
    scans = save(tmp_path / "scans", one=bright()[0])
    before = (scans / "one.nii.gz").read_bytes()
    for given in (scans, scans / "one.nii.gz"):
        with pytest.raises(ValueError, match="contains the scans; give another folder"):
            predict(run.folder, given, scans, overwrite=True, quiet=True)
    assert (scans / "one.nii.gz").read_bytes() == before
    assert [path.name for path in scans.iterdir()] == ["one.nii.gz"]


@pytest.mark.parametrize("content", ["", "case,tumour ml\none,1.0\n", "case,bright ml,brightest ml\none,much,1\n"])
def test_invalid_statistics_are_refused_before_anything_is_written(content, run, tmp_path):
    scans = save(tmp_path / "scans", one=bright()[0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "statistics.csv").write_text(content)
    with pytest.raises(
        FileError, match=r"statistics\.csv: (is not a table of numbers|has other columns than case, brig)"
    ):
        predict(run.folder, scans, tmp_path / "out", statistics=True, quiet=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["statistics.csv"]


def test_a_case_has_one_row_whatever_its_name(tmp_path):
    """Formulas and names that are not UTF-8 are escaped; a number is a valid name."""
    path = tmp_path / "statistics.csv"
    for volume in (1.0, 2.0):
        for case in ("=1+1", "caf\udce9", "001", "NA"):
            add_row(path, case, {"=bright ml": volume})
    rows = list(csv.DictReader(path.open()))
    assert [(row["case"], row["'=bright ml"]) for row in rows] == [
        ("'=1+1", "2.0"),
        ("001", "2.0"),
        ("NA", "2.0"),
        ("caf\\udce9", "2.0"),
    ]


def test_two_processes_add_to_one_table(run, tmp_path):
    """Each waits for the other, so that no row is lost."""
    code = (
        "import sys; from pathlib import Path; from attn3d.segmentation.io.tables import add_row;"
        "[add_row(Path(sys.argv[1]), f'{sys.argv[2]}{index}', {'bright': 1.0}) for index in range(20)]"
    )
    path = tmp_path / "statistics.csv"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    cases = [row["case"] for row in csv.DictReader(path.open())]
    assert cases == sorted(f"{name}{index}" for name in "ab" for index in range(20))
    assert [one for one in tmp_path.iterdir() if "statistics" in one.name] == [path]


def test_an_exception_fails_only_its_own_case(run, tmp_path, monkeypatch):
    def fake(images, *options):
        if images[0].shape == (5, 5, 5):
            raise RuntimeError("Standard deviation is 0, masked values should not be all equal")
        return on_grid(images, *options)

    on_grid = prediction.on_grid
    monkeypatch.setattr(prediction, "on_grid", fake)
    long = 238 * "n"
    two_valued = np.zeros((5, 5, 5), np.float32)
    two_valued[2:] = 1
    scans = save(tmp_path / "scans", first=bright()[0], flat=two_valued, **{long: bright()[0]}, second=bright()[0])
    found = predict(run.folder, scans, tmp_path / "out", quiet=True)
    assert sorted(found.written) == ["first", long, "second"]
    assert found.failed == {
        str(scans / "flat.nii.gz"): "RuntimeError: Standard deviation is 0, masked values should not be all equal"
    }
    found = predict(run.folder, scans, tmp_path / "more", probabilities=True, quiet=True)
    assert sorted(found.written) == ["first", "second"]
    assert found.failed[str(tmp_path / "more" / f"{long}_probabilities.nii.gz")] == "File name too long"
    assert not [path for path in (tmp_path / "more").iterdir() if path.name[0] == "."]


def test_volumes_pictures_and_probabilities(run, tmp_path):
    data, block = bright(size=(8, 8, 6))
    data[block][:4] = 290.0
    scans = save(tmp_path / "scans", one=data)
    found = predict(
        run.folder,
        scans,
        tmp_path / "out",
        statistics=True,
        preview=True,
        probabilities=True,
        mirror=[0, 2],
        quiet=True,
    )
    labels = np.asarray(nib.load(found.written["one"]).dataobj)
    assert set(np.unique(labels)) == {0, 2, 5}
    volumes = {name: pytest.approx((labels == value).sum() * 8 / 1000) for value, name in LABELS.legend.items()}
    assert found.volume_ml["one"] == volumes
    row = next(csv.DictReader((tmp_path / "out" / "statistics.csv").open()))
    assert float(row["bright ml"]) == pytest.approx(found.volume_ml["one"]["bright"], abs=1e-3)
    probabilities = nib.load(tmp_path / "out" / "one_probabilities.nii.gz").get_fdata()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(np.array([0, 2, 5])[probabilities.argmax(-1)], labels)
    assert (tmp_path / "out" / "one.png").read_bytes().startswith(b"\x89PNG")


def test_small_volumes_are_not_rounded_away(run, tmp_path):
    (tmp_path / "scans").mkdir()
    data, _ = bright(size=(12, 12, 6))
    nib.save(scan(data, np.diag([0.3, 0.3, 0.3, 1.0])), tmp_path / "scans" / "one.nii.gz")
    found = predict(run.folder, tmp_path / "scans", tmp_path / "out", statistics=True, quiet=True)
    assert 0 < found.volume_ml["one"]["bright"] < 0.1
    row = next(csv.DictReader((tmp_path / "out" / "statistics.csv").open()))
    assert float(row["bright ml"]) == pytest.approx(found.volume_ml["one"]["bright"], rel=1e-5)


def test_maps_have_the_geometry_of_the_labels(run, tmp_path):
    """Also where a gantry is tilted, which a qform cannot store, and where qform and sform have different codes."""
    (tmp_path / "scans").mkdir()
    tilted = AFFINES["sheared"]
    image = scan(bright()[0], tilted)
    image.set_qform(tilted, "unknown")
    nib.save(image, tmp_path / "scans" / "tilted.nii.gz")
    mixed = scan(bright()[0], AFFINES["oblique"])
    mixed.set_sform(AFFINES["oblique"], "mni")
    nib.save(mixed, tmp_path / "scans" / "mixed.nii.gz")
    found = predict(run.folder, tmp_path / "scans", tmp_path / "out", uncertainty=True, probabilities=True, quiet=True)
    assert sorted(found.written) == ["mixed", "tilted"]
    for name, path in found.written.items():
        label = nib.load(path)
        for what in ("entropy", "probabilities"):
            image = nib.load(tmp_path / "out" / f"{name}_{what}.nii.gz")
            np.testing.assert_array_equal(image.affine, label.affine)
            for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "xyzt_units"):
                np.testing.assert_array_equal(image.header[field], label.header[field])
    assert nib.load(found.written["tilted"]).header["qform_code"] == 0


def test_a_preview_has_the_name_of_the_case_in_every_format(run, tmp_path):
    scans = save(tmp_path / "scans", one=bright()[0])
    predict(run.folder, scans, tmp_path / "out", format="nrrd", preview=True, quiet=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.html", "one.nrrd", "one.png"]
    assert "<title>one" in (tmp_path / "out" / "one.html").read_text()


def test_a_scan_without_dicom_is_refused_before_it_is_segmented(run, tmp_path, monkeypatch):
    scans = save(tmp_path / "scans", one=bright()[0])
    monkeypatch.setattr(prediction, "find_spec", lambda name: True)  # an optional dependency
    monkeypatch.setattr(prediction, "segment", lambda *_, **__: pytest.fail("it is segmented"))
    found = predict(run.folder, scans, tmp_path / "out", dicom_seg=True, quiet=True)
    assert found.failed == {
        str(scans / "one.nii.gz"): "is not a DICOM series, which a DICOM SEG refers to; omit --dicom-seg"
    }


def test_dicom_seg_without_highdicom_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`dicom_seg` needs highdicom; python -m pip install 'attn3d\[dicom\]'"):
        predict(run.folder, tmp_path, tmp_path / "out", dicom_seg=True, quiet=True)


def rows(table):
    """The rows of a table, by case; empty cells are NaN."""
    found = list(csv.DictReader(table.open()))
    return {row.pop("case"): {name: float(cell or "nan") for name, cell in row.items()} for row in found}


@pytest.mark.parametrize("geometry", ["oblique", "permuted"])
def test_uncertainty_is_written_as_images_and_a_row_in_a_table(geometry, run, tmp_path):
    """Compared with the formulas on the probabilities of two runs; means are over the labelled voxels."""
    other = make_run(tmp_path / "other", spacing=(3.0, 3.0, 3.0))
    (tmp_path / "scans").mkdir()
    for name, value in (("dark", 100.0), ("one", 190.0)):
        nib.save(scan(bright(size=(8, 8, 6), value=value)[0], AFFINES[geometry]), tmp_path / "scans" / f"{name}.nii.gz")
    scans, both, out = tmp_path / "scans", [run.folder, other.folder], tmp_path / "out"
    each = []
    for index, folder in enumerate(both):
        predict(folder, scans, tmp_path / str(index), probabilities=True, quiet=True)
        each.append(nib.load(tmp_path / str(index) / "one_probabilities.nii.gz").get_fdata())
    found = predict(both, scans, out, uncertainty=True, preview=True, quiet=True)
    assert not found.failed
    original, labels = nib.load(scans / "one.nii.gz"), nib.load(found.written["one"]).get_fdata()
    mean = (each[0] + each[1]) / 2
    plain = {"entropy": -np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1)), 0).sum(-1)}
    chosen = mean.argmax(-1)[..., None]
    highest = {"entropy": np.log(3), "spread": 0.5}
    plain["spread"] = np.abs(np.take_along_axis(each[0] - each[1], chosen, -1))[..., 0] / 2
    assert plain["spread"].max() > 0.05, "the runs must differ"
    for name, expected in plain.items():
        image = nib.load(out / f"one_{name}.nii.gz")
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(image.affine, original.affine, atol=1e-5)
        np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-5)
        assert found.uncertainty["one"][name] == pytest.approx(expected[labels > 0].mean(), abs=1e-5)
        page = (out / "one.html").read_text()
        assert f"> {name}</label>" in page
        assert f"data-limits='[0.0, {highest[name]}]'" in page
    assert all(np.isnan(one) for one in found.uncertainty["dark"].values()), "without labels, means are NaN"
    expected = {
        case: {name: pytest.approx(one, abs=1e-6, nan_ok=True) for name, one in measures.items()}
        for case, measures in found.uncertainty.items()
    }
    assert rows(out / "uncertainty.csv") == expected
    (out / "uncertainty.csv").unlink()  # as after a kill before it was written
    again = predict(both, scans, out, uncertainty=True, quiet=True)
    assert sorted(again.skipped) == ["dark", "one"]
    assert again.uncertainty == expected
    assert rows(out / "uncertainty.csv") == expected


def test_damaged_uncertainty_is_an_error(run, tmp_path):
    """Not a mean of NaN, which stands for a scan without labels."""
    scans, out = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0]), tmp_path / "out"
    predict(run.folder, scans, out, uncertainty=True, quiet=True)
    entropy = nib.load(out / "one_entropy.nii.gz")
    damaged = np.full(entropy.shape, np.nan, np.float32)
    nib.save(nib.Nifti1Image(damaged, entropy.affine), out / "one_entropy.nii.gz")
    found = predict(run.folder, scans, out, uncertainty=True, quiet=True)
    problem = "has voxels that are NaN or infinite; segment the scan again (--overwrite)"
    assert found.failed == {str(out / "one_entropy.nii.gz"): problem}


def test_missing_uncertainty_is_an_error(run, tmp_path):
    """For labels that existed before, and for another number of runs."""
    scans, out = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0]), tmp_path / "out"
    before = predict(run.folder, scans, out, quiet=True).written["one"].read_bytes()
    found = predict(run.folder, scans, out, uncertainty=True, quiet=True)
    missing = "does not exist; `attn3d predict --uncertainty --overwrite` writes it"
    assert found.failed == {str(out / "one_entropy.nii.gz"): missing}
    assert not found.skipped
    assert not found.uncertainty
    assert (out / "one.nii.gz").read_bytes() == before
    found = predict(run.folder, scans, out, uncertainty=True, overwrite=True, quiet=True)
    assert [*found.uncertainty["one"]] == ["entropy"]
    with pytest.raises(FileError, match=r"uncertainty\.csv: has other columns than case, entropy, spread;"):
        predict([run.folder, make_run(tmp_path / "other").folder], scans, out, uncertainty=True, quiet=True)


def test_only_the_largest_piece_of_all_labels_together_is_kept(run, tmp_path):
    data, _ = bright(size=(6, 6, 4))
    data[10:12, 9:15, 4:8] = 280.0  # a part with the second label, smaller than the piece apart
    data[15:19, 18:22, 4:8] = 280.0
    scans = save(tmp_path / "scans", one=data)
    everything, kept = (
        np.asarray(nib.load(predict(run.folder, scans, tmp_path / name, **options, quiet=True).written["one"]).dataobj)
        for name, options in (("all", {}), ("kept", {"keep_largest": True}))
    )
    assert set(np.unique(everything[:14])) == {0, 2, 5}
    assert (everything[14:] == 5).sum() > (everything[:14] == 5).sum()
    assert np.array_equal(kept[:14], everything[:14])
    assert not kept[14:].any()


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, "bfloat16 is used"), (1.5, "float32 is used")])
def test_each_network_may_compute_in_bfloat16(seconds, chosen, run, tmp_path, caplog, monkeypatch):
    """The precision is chosen once for each run, from three scans. This network gives the same values in both."""
    caplog.set_level(logging.INFO, "attn3d")
    clock = accumulate(cycle((0.0, 1.0, 0.0, seconds)))  # a call in float32 takes a second
    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    blocks = {f"scan{size}": bright(size=(size, 6, 4))[0] for size in (4, 5, 6, 8)}  # one window each
    scans = save(tmp_path / "scans", **blocks)
    runs = [run.folder, make_run(tmp_path / "other").folder]
    exact, either = (
        predict(runs, scans, tmp_path / name, bf16=bf16, quiet=True)
        for name, bf16 in (("exact", False), ("either", True))
    )
    assert [message.split(":")[0] for message in caplog.messages] == [chosen] * 2
    for name in blocks:
        labels = [np.asarray(nib.load(found.written[name]).dataobj) for found in (exact, either)]
        assert labels[0].any()
        np.testing.assert_array_equal(*labels)


def test_several_runs_are_averaged_on_the_grid_of_the_scan(run, tmp_path):
    other = make_run(tmp_path / "other", spacing=(3.0, 3.0, 3.0))
    scans = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0])
    parts = [
        predict(one, scans, tmp_path / f"out{index}", probabilities=True, quiet=True)
        for index, one in enumerate((run.folder, other.folder, [run.folder, other.folder]))
    ]
    assert all(part.written for part in parts)
    one, two, mean = (nib.load(tmp_path / f"out{index}" / "one_probabilities.nii.gz").get_fdata() for index in range(3))
    assert np.abs(one - two).max() > 0.1, "the grids must differ"
    np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-6)


def test_runs_with_different_labels_are_refused(run, tmp_path):
    other = make_run(tmp_path / "other")
    change_json(other.folder / "config.json", labels={"names": ["tumour"], "values": [[1]]})
    scans = save(tmp_path / "scans", one=bright()[0])
    with pytest.raises(ValueError, match="same labels"):
        predict([run.folder, other.folder], scans, tmp_path / "out", quiet=True)


def test_a_single_slice_is_segmented(run, tmp_path):
    data, _ = bright(size=(8, 8, 6))
    scans = save(tmp_path / "scans", one=data[:, :, 6:7])
    found = predict(run.folder, scans, tmp_path / "out", quiet=True)
    assert (np.asarray(nib.load(found.written["one"]).dataobj) == 2).any()


@pytest.mark.parametrize("content", ["nothing", "an empty folder"])
def test_without_scans(content, run, tmp_path):
    if content == "an empty folder":
        (tmp_path / "scans").mkdir()
    with pytest.raises(FileError, match="scans"):
        predict(run.folder, tmp_path / "scans", tmp_path / "out", quiet=True)


def test_without_weights(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(FileError, match=f"finish the training with `attn3d train --resume --out {run.folder}`"):
        predict(run.folder, tmp_path, tmp_path / "out", quiet=True)
    run.weights.write_bytes(b"no weights")
    with pytest.raises(FileError, match="is damaged"):
        predict(run.folder, tmp_path, tmp_path / "out", quiet=True)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan"), "half"])
def test_windows_cannot_overlap_completely(overlap, run, tmp_path):
    with pytest.raises((TypeError, ValueError), match=r"`overlap` must be .*in \[0, 1\), got"):
        predict(run.folder, tmp_path, tmp_path / "out", overlap=overlap, quiet=True)


@pytest.mark.parametrize("mirror", [[3], [0, 0], [-1], ["x"], [0.5], 0])
def test_invalid_axes_to_mirror_are_refused(mirror, run, tmp_path):
    with pytest.raises(ValueError, match="`mirror` must be a list of axes from 0 to 2, each at most once, got"):
        predict(run.folder, tmp_path, tmp_path / "out", mirror=mirror, quiet=True)


@pytest.mark.parametrize("millilitres", [-1.0, float("nan")])
def test_an_invalid_size_of_pieces_is_refused(millilitres, run, tmp_path):
    with pytest.raises(ValueError, match="`remove_small` must be a finite number of at least 0, got"):
        predict(run.folder, tmp_path, tmp_path / "out", remove_small=millilitres, quiet=True)


def test_one_image_is_refused_if_the_network_needs_more(tmp_path):
    nib.save(scan(bright()[0], AFFINES["RAS"]), tmp_path / "scan.nii.gz")
    ((case,), _) = find_scans(tmp_path / "scan.nii.gz", 2)
    with pytest.raises(FileError, match=r"scan.nii.gz: must be a 4-D file of 2 volumes, .* _0000 to _0001"):
        read_case_image(case)


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_number_of_scans(run, tmp_path):
    """200 small scans with statistics: Python's memory after half of them is that after all."""
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(scan(bright()[0][:, :16, :8], AFFINES["RAS"]), scans / "000.nii")
    for index in range(1, 200):
        (scans / f"{index:03d}.nii").write_bytes((scans / "000.nii").read_bytes())
    held, segment = [], prediction._segment

    def measured(*arguments, **options):
        found = segment(*arguments, **options)
        gc.collect()
        held.append((tracemalloc.get_traced_memory()[0], len(gc.get_objects())))
        return found

    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prediction, "_segment", measured)
            found = predict(run.folder, scans, tmp_path / "out", quiet=True)
    finally:
        tracemalloc.stop()
    assert len(found.written) == 200
    assert not found.failed
    (bytes_before, objects_before), (bytes_after, objects_after) = held[99], held[199]
    assert bytes_after - bytes_before < 100 * 2000, "a row of volumes and two paths per case"
    assert objects_after - objects_before < 100 * 20


def test_a_scan_without_findings_has_a_preview(run, tmp_path):
    scans = save(tmp_path / "scans", dark=bright(value=10.0)[0])
    found = predict(run.folder, scans, tmp_path / "out", preview=True, quiet=True)
    assert not found.failed
    assert not np.asarray(nib.load(found.written["dark"]).dataobj).any()
    assert (tmp_path / "out" / "dark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "dark.html").exists()


def test_a_missing_seg_can_be_omitted(tmp_path):
    with pytest.raises(FileError, match=r"one\.dcm: .*\(--overwrite\), or omit --dicom-seg$"):
        check_beside(tmp_path / "one.nii.gz", False, False, True)
