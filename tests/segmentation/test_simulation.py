from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from attn3d.segmentation import FileError, read_image
from attn3d.segmentation.datasets import find_dataset, read_case_image, read_case_label
from attn3d.segmentation.simulation import HAEMORRHAGES, cohort, haemorrhages, scanner, simulate, threshold_segmentation
from attn3d.segmentation.simulation.anatomy import sample_head
from attn3d.segmentation.simulation.haemorrhages import MEDIAN_ML, bleed, draw_volume
from tests.segmentation.volumes import AFFINES, scan

CASES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated") / "cohort"
    simulate(out, CASES, seed=0, quiet=True)
    return out


@pytest.fixture(scope="module")
def head():
    return sample_head(np.random.default_rng(3))


@pytest.fixture
def small(monkeypatch):
    """Makes cases of a few voxels, for tests of files."""

    def sample(random):
        units = random.normal(40, 100, (6, 7, 5)).astype(np.float32)
        return units, (units > 60).astype(np.uint8), AFFINES["RAS"].copy()

    monkeypatch.setattr(cohort, "sample_scan", sample)


def scans(folder):
    """Each scan and its labels, in RAS orientation."""
    dataset = find_dataset(folder)
    for case in dataset.cases:
        (image,) = read_case_image(case)
        label = read_case_label(case, dataset, image)
        yield nib.as_closest_canonical(image), np.asarray(nib.as_closest_canonical(label).dataobj)


def test_the_cohort_is_a_data_set_marked_as_simulated(folder):
    dataset = find_dataset(folder)
    assert dataset.layout == "nnU-Net v2"
    assert dataset.simulated
    assert "SIMULATED" in str(dataset)
    assert "SIMULATED" in (folder / "dataset.json").read_text()
    assert dataset.labels.legend == HAEMORRHAGES
    assert [case.name for case in dataset.cases] == [f"simulated_{number:03d}" for number in range(CASES)]
    for case in dataset.cases:
        assert nib.load(case.images[0]).get_data_dtype() == np.int16
        assert nib.load(case.label[0]).get_data_dtype() == np.uint8


def test_the_geometries_differ(folder):
    images = [read_image(path) for path in sorted((folder / "imagesTr").iterdir())]
    assert len({nib.aff2axcodes(image.affine) for image in images}) > 1
    assert any(nib.affines.obliquity(image.affine).max() > 0.05 for image in images)
    assert any(nib.affines.obliquity(image.affine).max() < 1e-3 for image in images)
    for image in images:
        spacing = np.sort(nib.affines.voxel_sizes(image.affine))
        assert spacing[2] == pytest.approx(5.0, abs=1e-3)
        assert spacing[0] == pytest.approx(spacing[1], abs=1e-3)
        assert 1.75 < spacing[0] < 2.05


def test_the_scans_are_heads_in_hounsfield_units(folder):
    for image, labels in scans(folder):
        units = image.get_fdata()
        assert np.median(units[:2]) == pytest.approx(-1000, abs=20)
        assert 900 < units.max() <= 3071
        centre = np.rint(np.linalg.inv(image.affine) @ (0, -17, 35, 1))[:3].astype(int)
        ring = units[:, :, centre[2]] > 250
        inside = ndimage.binary_fill_holes(ring) & ~ring
        assert inside[centre[0], centre[1]], "the skull must be closed"
        brain = units[:, :, centre[2]][inside & (labels[:, :, centre[2]] == 0)]
        assert 25 < np.median(brain) < 42
        if labels.any():
            assert 45 < np.median(units[labels > 0]) < 75


def test_a_threshold_finds_thick_blood_and_little_else(folder):
    thick, thin = [], []
    for image, labels in scans(folder):
        found = threshold_segmentation(image)
        for value, name in HAEMORRHAGES.items():
            if (labels == value).any():
                (thick if name in ("EDH", "IPH") else thin).append(found[labels == value].mean())
        assert found[labels == 0].mean() < 0.005
    assert np.mean(thick) > 0.5 > np.mean(thin)


def test_a_case_depends_only_on_the_seed_and_its_number(tmp_path, folder):
    fewer, other = (
        simulate(tmp_path / str(seed), np.int64(1), seed=np.int64(seed), quiet=True).cases[0] for seed in (0, 1)
    )
    first = find_dataset(folder).cases[0]
    for path, again in zip(first.images + first.label, fewer.images + fewer.label, strict=True):
        np.testing.assert_array_equal(nib.load(path).dataobj, nib.load(again).dataobj)
        np.testing.assert_array_equal(nib.load(path).affine, nib.load(again).affine)
    one, two = read_image(first.images[0]), read_image(other.images[0])
    assert one.shape != two.shape or not np.array_equal(one.get_fdata(), two.get_fdata())


def share_in(part, share):
    return (share * part).sum() / share.sum()


@pytest.mark.parametrize("kind", HAEMORRHAGES.values())
def test_bleeds_have_the_place_of_their_kind_and_the_drawn_volume(monkeypatch, head, kind):
    monkeypatch.setattr(haemorrhages, "draw_volume", lambda random, kind: 12.0)
    share, halo = bleed(np.random.default_rng(5), head, kind, np.ones_like(head.depth))
    assert share.min() >= 0
    assert share.max() <= 1
    room = 0.9 * head.ventricle.sum() * head.voxel_ml if kind == "IVH" else np.inf
    assert share.sum() * head.voxel_ml == pytest.approx(min(12.0, room), rel=0.2)
    assert head.depth[share > 0].min() > -1.01, "there must be no blood in bone"
    x, y, z = head.place
    beneath = np.average(head.depth, weights=share)
    if kind == "EDH":
        assert beneath < 12
        assert head.depth[share > 0.5].max() > 8, "a lens must be thick in its middle"
        thick = share * (head.depth > 6)
        spread = [np.average((a - np.average(a, weights=w)) ** 2, weights=w) for a in (x, y, z) for w in (share, thick)]
        assert sum(spread[1::2]) < sum(spread[::2]), "a lens must be thin at its rim"
    elif kind == "SDH":
        assert beneath < 8
        assert share_in(x > 0, share) < 0.05 or share_in(x > 0, share) > 0.95
    elif kind == "IVH":
        assert share_in(head.ventricle, share) > 0.75
        assert np.average(y, weights=share) < np.average(y, weights=head.ventricle), "blood must sink to the back"
    elif kind == "SAH":
        assert share_in(head.grey + head.white, share) < 0.5
        assert share_in(head.ventricle, share) < 0.1
    elif kind == "IPH":
        assert share_in(head.grey + head.white, share) > 0.8
        assert beneath > 5
        assert share_in(halo, share) > 0.9, "oedema must surround the bleed"
        assert halo.sum() > 1.2 * share.sum()
    assert (halo.sum() > 0) == (kind == "IPH")


def test_bleeds_do_not_fill_the_same_voxel_twice(head):
    random = np.random.default_rng(0)
    free = np.ones_like(head.depth)
    for kind in HAEMORRHAGES.values():
        free -= bleed(random, head, kind, free)[0]
        assert free.min() >= -1e-5


def test_volumes_are_log_normal():
    random = np.random.default_rng(0)
    for kind, median in MEDIAN_ML.items():
        volumes = [draw_volume(random, kind) for _ in range(1000)]
        assert np.median(volumes) == pytest.approx(median, rel=0.1)
        assert np.std(np.log(volumes)) == pytest.approx(0.7, abs=0.07)


def test_heads_differ_in_size_and_shape(head):
    other = sample_head(np.random.default_rng(4))
    volumes = [(h.grey + h.white).sum() * h.voxel_ml for h in (head, other)]
    assert all(1100 < volume < 2300 for volume in volumes)
    assert abs(volumes[0] - volumes[1]) > 10


def test_the_threshold_opens_the_mask_from_48_to_95_hu():
    units = np.full((9, 9, 9), 30.0, np.float32)
    units[2:5, 2:5, 2:5] = 60
    units[7, 7, 7] = 60
    units[6:9, 0:3, 0:3] = 96
    found = threshold_segmentation(scan(units, AFFINES["RAS"]))
    assert found.dtype == np.uint8
    assert found[3, 3, 3] == 1
    assert found.sum() == 7


def test_an_existing_cohort_is_used_again(tmp_path, small, monkeypatch):
    out = tmp_path / "cohort"
    before = simulate(out, 3, quiet=True)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def fail(random):
        raise AssertionError("simulated again")

    monkeypatch.setattr(cohort, "sample_scan", fail)
    assert simulate(out, 3, quiet=True) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


@pytest.mark.parametrize("missing", ["labelsTr/simulated_001.nii.gz", "dataset.json", "imagesTr"])
def test_an_incomplete_cohort_is_refused(tmp_path, small, missing):
    out = tmp_path / "cohort"
    simulate(out, 2, quiet=True)
    (out / missing).rename(tmp_path / "moved")
    with pytest.raises(
        FileError, match=r"cohort: already exists, and is not a complete cohort of .* 2 cases and seed 0;"
    ):
        simulate(out, 2, quiet=True)


@pytest.mark.parametrize("changed", [{"cases": 3}, {"seed": 1}])
def test_another_cohort_is_refused(tmp_path, small, changed):
    out = tmp_path / "cohort"
    before = simulate(out, 2, quiet=True)
    with pytest.raises(FileError, match=r"cohort: already exists, .*; choose a new or empty folder"):
        simulate(out, **{"cases": 2, "quiet": True} | changed)
    assert simulate(out, 2, quiet=True) == before


def test_other_folders_are_never_replaced(tmp_path, small):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    for out in (tmp_path, tmp_path / "none" / "..", thesis):
        with pytest.raises(FileError, match="already exists, and is not a complete cohort"):
            simulate(out, 2, quiet=True)
    assert thesis.read_text() == "years of work"
    cohort = tmp_path / "cohort"
    simulate(cohort, 1, quiet=True)
    (cohort / "thesis.tex").write_text("years of work")
    assert len(simulate(cohort, 1, quiet=True).cases) == 1
    with pytest.raises(FileError, match="cohort: already exists"):
        simulate(cohort, 2, quiet=True)
    assert (cohort / "thesis.tex").exists()
    (tmp_path / "empty").mkdir()
    assert len(simulate(tmp_path / "empty", 2, quiet=True).cases) == 2


def test_nothing_is_left_of_an_interrupted_cohort(tmp_path, small, monkeypatch):
    written = []

    def interrupted(folder, number, random):
        if number == 1:
            raise KeyboardInterrupt
        written.append(number)

    monkeypatch.setattr(cohort, "_write_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "cohort", 3, quiet=True)
    assert written == [0]
    assert not list(tmp_path.iterdir())


def test_invalid_numbers_of_a_cohort_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`cases` must be at least 1, got 0"):
        simulate(tmp_path / "cohort", 0)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        simulate(tmp_path / "cohort", 1, seed=-1)
    with pytest.raises(TypeError, match=r"`cases` must be an integer, got 1\.5"):
        simulate(tmp_path / "cohort", 1.5)


def test_calcium_lies_in_pairs_and_in_the_pineal_gland():
    """With low random numbers, all of these calcifications occur and no others."""
    low = SimpleNamespace(random=lambda: 0.1, integers=lambda *_: 0, uniform=lambda least, _: least)
    found = scanner._calcifications(low, SimpleNamespace(depth=None, place=None))
    places = [tuple(centre.ravel().tolist()) for centre, _, _ in found]
    assert places == [(0, -30, 4), (-24, -42, 8), (24, -42, 8), (-20, -2, 0), (20, -2, 0)]
    assert {values[1:] for values in found} == {(1.8, 90)}
