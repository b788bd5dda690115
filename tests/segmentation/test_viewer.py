"""The viewer page: its content, and that it runs in a browser without a network."""

import base64
import gzip
import hashlib
import io
import re
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from attn3d.segmentation.reporting import viewer
from attn3d.segmentation.reporting.viewer import Heat, case_page, view_of
from tests.browser import EXECUTABLE, Browser
from tests.segmentation.volumes import AFFINES

LABELS = {1: "IPH", 4: "SDH & <b>'"}
WINDOWS = ((40.0, 80.0), (80.0, 200.0), (100.0, 300.0))
SHAPE = (24, 20, 10)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def make_view(affine=AFFINES["LAS, 5 mm slices"], **options):
    """A CT with integer intensities and two labels, and attention weights on a part of it."""
    data = np.random.default_rng(0).integers(20, 60, SHAPE).astype(np.float32)
    data[0] = -1024
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:10, 6:12, 3:7], labels[16:20, 6:12, 3:7] = 1, 4
    weights = np.linspace(0, 1, 6 * 6 * 4, dtype=np.float32).reshape(6, 6, 4)
    there = affine @ np.array([[1, 0, 0, 4], [0, 1, 0, 6], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    options = {"heat": {"weights": Heat(weights, there)}, "windows": WINDOWS} | options
    both = {"reference": np.roll(labels, 2, axis=0), "network": labels}
    view = view_of("case <1>", nib.Nifti1Image(data, affine), both, LABELS, **options)
    return view, data, labels, weights, there


def volumes_of(page):
    """The volumes that are embedded in a page."""
    packed = re.findall(r'<script type="application/octet-stream">([^<]+)</script>', page)
    return [nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(one))) for one in packed]


@pytest.mark.parametrize("geometry", AFFINES)
def test_the_embedded_volumes_have_the_values_and_affines_of_the_scan_and_labels(geometry):
    view, data, labels, weights, there = make_view(AFFINES[geometry])
    scan, reference, network, heat = volumes_of(case_page(view, PNG, simulated=False))
    assert [one.get_data_dtype() for one in (scan, reference, network, heat)] == [np.int16, *[np.uint8] * 3]
    np.testing.assert_array_equal(scan.get_fdata(), data)
    np.testing.assert_array_equal(reference.get_fdata(), np.roll(labels, 2, axis=0))
    np.testing.assert_array_equal(network.get_fdata(), labels)
    np.testing.assert_allclose(heat.get_fdata(), weights, atol=0.5 / 255 + 1e-6)
    for one in (scan, reference, network):
        np.testing.assert_allclose(one.affine, AFFINES[geometry], atol=1e-5)
    np.testing.assert_allclose(heat.affine, there, atol=1e-5)


def test_fractional_intensities_are_nearly_exact():
    data = np.random.default_rng(0).normal(0, 1e5, SHAPE).astype(np.float32)
    view = view_of("case", nib.Nifti1Image(data, np.eye(4)), {}, LABELS)
    (scan,) = volumes_of(case_page(view, PNG, simulated=False))
    np.testing.assert_allclose(scan.get_fdata(), data, atol=np.ptp(data) / 65_000)
    assert view.windows == []
    low, high = view.layers[0].limits
    assert data.min() <= low < high <= data.max()


def test_a_large_scan_is_subsampled_and_the_page_tells_so():
    view, data, labels, _, _ = make_view(voxels=700)
    page = case_page(view, PNG, simulated=False)
    scan, _, network, heat = volumes_of(page)
    np.testing.assert_array_equal(scan.get_fdata(), data[::4, ::2])
    np.testing.assert_array_equal(network.get_fdata(), labels[::4, ::2])
    np.testing.assert_allclose(scan.affine, AFFINES["LAS, 5 mm slices"] @ np.diag([4, 2, 1, 1]))
    assert heat.shape == (6, 6, 4)
    assert "has 24 × 20 × 10 voxels" in page
    assert "with 6 × 10 × 10 of them: one of every 4 × 2 × 1" in page
    assert "too many for a page" not in case_page(make_view()[0], PNG, simulated=False)


def test_the_page_requests_nothing_and_escapes_names():
    page = case_page(make_view()[0], PNG, simulated=True)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", page)
    assert all(one.startswith("data:image/png;base64,") for one in re.findall(r'(?:src|href)="([^"]*)', page))
    assert "case &lt;1&gt;" in page
    assert "SDH &amp; &lt;b&gt;" in page
    assert "<b>" not in page
    assert "Trained on simulated scans." in page
    assert "imulated" not in case_page(make_view()[0], PNG, simulated=False).split("</style>")[1]


def test_windows_are_named_and_labels_coloured_as_in_the_pictures():
    view, *_ = make_view()
    assert view.windows == [
        ("brain 40 / 80 HU", 0, 80),
        ("subdural 80 / 200 HU", -20, 180),
        ("100 / 300 HU", -50, 250),
    ]
    assert view.layers[1].labels == {1: ("IPH", "#56b4e9"), 4: ("SDH & <b>'", "#e69f00")}
    assert [layer.shown for layer in view.layers] == [True, False, True, False]


def test_the_script_has_the_checksum_in_its_readme():
    script = gzip.decompress(base64.b64decode(viewer.niivue()))
    readme = files("attn3d.segmentation.reporting").joinpath("niivue", "README.md").read_text()
    assert hashlib.sha256(script).hexdigest() in readme


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if EXECUTABLE is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    path = tmp_path_factory.mktemp("page") / "case <1> 100%.html"
    path.write_text(case_page(make_view()[0], PNG, simulated=True), encoding="utf-8")
    return path


def canvas(browser):
    return imread(io.BytesIO(browser.picture("canvas")))[..., :3]


def test_the_viewer_runs_without_a_network(page, tmp_path):
    with Browser(page, tmp_path) as browser:
        browser.wait_for("document.querySelector('.notice').textContent == '' && !document.querySelector('.still')")
        place = "document.querySelector('output').textContent"
        before, drawn = browser.run(place), canvas(browser)
        assert drawn.std() > 0.1, "the canvas is blank"
        browser.run("document.querySelector('canvas').focus()")
        browser.press("ArrowUp")
        assert browser.run(place) != before
        moved = canvas(browser)
        assert np.abs(moved - drawn).max() > 0.1, "the slice does not change"
        assert "network" in browser.run(place)
        browser.click("fieldset:nth-of-type(3) input[type=checkbox]")
        assert "network" not in browser.run(place)
        colourful = [np.ptp(one, axis=-1) > 0.3 for one in (moved, canvas(browser))]
        assert colourful[1].sum() < 0.7 * colourful[0].sum(), "the labels are still there"
        assert browser.complaints == []
        assert {one.split(":")[0] for one in browser.requests} <= {"file", "data", "blob"}
        assert sum(one.startswith("file") for one in browser.requests) == 1


def test_without_webgl_the_picture_stays(page, tmp_path):
    with Browser(page, tmp_path, webgl=False) as browser:
        browser.wait_for("document.querySelector('.notice').textContent.includes('no WebGL2')")
        assert browser.run("document.querySelector('.still').offsetHeight > 0")
        assert browser.run("document.querySelector('.running').offsetHeight == 0")
        assert browser.complaints == []
