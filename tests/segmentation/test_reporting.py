import base64
import csv
import gzip
import io
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from monai.data import MetaTensor
from torch import nn

import attn3d
from attn3d.plotting import COLORS
from attn3d.segmentation import FileError, evaluate, write_label
from attn3d.segmentation.configuration import configure
from attn3d.segmentation.datasets import find_dataset
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.reporting import pictures, report
from attn3d.segmentation.reporting.page import same_gates
from attn3d.segmentation.reporting.pictures import attention_figures, lesion_figures, patch_around
from attn3d.segmentation.reporting.viewer import case_page, view_of
from attn3d.segmentation.runs import Run
from attn3d.segmentation.settings import settings_from
from tests.segmentation.volumes import AFFINES, scan

LABELS = {"IPH": 1, "SDH & <b>": 2}
SHIFTS = {"good": 0, "fair": 2, "poor": 9, "empty": 0}


def lesion(name):
    """A box of 8 x 6 x 3 voxels with label 1 or 2, or an empty label."""
    labels = np.zeros((32, 24, 12), np.uint8)
    if name != "empty":
        labels[6:14, 8:14, 5:8] = 2 if name == "fair" else 1
    return labels


def make_run(folder, *, simulated=True, attention="se", **settings):
    """Writes the files of a finished run with an untrained network, one training case and four held-out cases."""
    data, affine = folder / "data", AFFINES["LAS, 5 mm slices"]
    random = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (data / part).mkdir(parents=True)
    for name in ("train", *SHIFTS):
        image = random.normal(35, 4, (32, 24, 12)) + 30 * (lesion(name) > 0)
        nib.save(scan(image.astype(np.float32), affine), data / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(scan(lesion(name), affine), data / "labelsTr" / f"{name}.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0} | LABELS, "file_ending": ".nii.gz"}
    description |= {"numTraining": 5} | ({"simulated": {"seed": 0}} if simulated else {})
    (data / "dataset.json").write_text(json.dumps(description))

    dataset = find_dataset(data)
    cases = {case.name: case for case in dataset.cases}
    fingerprint = take_fingerprint(dataset, [cases["train"]], quiet=True)
    given = {"attention": attention, "width": 4, "patch_size": (16, 16, 8), "strides": ((2, 2, 1),)}
    given |= {"spacing": (1.0, 1.0, 5.0)} | settings
    config = configure(dataset, 1, fingerprint, settings_from(None, given))
    run = Run.create(
        folder / "run <1>", config, asdict(fingerprint), {"training": ["train"], "validation": list(SHIFTS)}
    )
    run.write_network(run.new_network())
    with (run.folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["epoch", "step", "seconds", "learning_rate", "loss", "dice", *(f"dice {name}" for name in LABELS)]
        )
        rows.writerows([[1, 2, 0.5, 3e-3, 1.25, "", "", ""], [2, 4, 1.0, 1e-3, 0.75, 0.5, 0.4, 0.6]])
    predictions = run.folder / "validation"
    predictions.mkdir()
    for name, shift in SHIFTS.items():
        image = nib.load(cases[name].images[0])
        write_label(predictions / f"{name}.nii.gz", np.roll(lesion(name), shift, axis=0), image)
    evaluate(predictions, data / "labelsTr", predictions, labels=dataset.labels, quiet=True)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def page(run):
    return report(run.folder).read_text()


ALONE = {"meta", "br", "img", "input", "path", "use"}  # tags without an end tag


class Page(HTMLParser):
    """The tags, attributes and captions of a page. Fails if a tag is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.captions = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ALONE:
            self.open.append(tag)
        if tag == "figcaption":
            self.captions.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in ALONE:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "figcaption" in self.open:
            self.captions[-1] += data


def test_the_page_is_self_contained(page):
    parsed = Page(page)
    assert not {"link", "iframe", "object"} & set(parsed.tags)
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "data"):
            assert value.startswith(("data:image/png;base64,", "#")), value[:80]
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_viewers_of_three_cases_have_reference_and_attention(run, page):
    for name in ("good", "fair", "poor"):
        assert f"<summary>View {name}</summary>" in page
    assert page.count(" open>") == 0, "viewers must be closed at first, so that the page opens quickly"
    scores = json.loads((run.folder / "validation" / "scores.json").read_text())
    median = lesion_figures(run, run.dataset(), scores)[1].view
    kinds = [(layer.kind, layer.name, layer.shown) for layer in median.layers]
    assert kinds[:3] == [("scan", "scan", True), ("labels", "reference", False), ("labels", "network", True)]
    heat = [nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(one.volume))) for one in median.layers[3:]]
    assert heat
    assert {one.shape for one in heat} == {(16, 16, 8)}
    inside = nib.affines.apply_affine(np.linalg.inv(heat[0].affine), median.center)
    assert (inside > 0).all()
    assert (inside < (16, 16, 8)).all(), "the patch must surround the lesion"


def test_all_viewers_of_a_page_share_the_limit_of_its_size(run, monkeypatch):
    scores = json.loads((run.folder / "validation" / "scores.json").read_text())
    sizes = [nib.load(run.folder / "validation" / f"{name}.nii.gz").get_fdata().size for name in scores["cases"]]
    monkeypatch.setattr(pictures, "VOXELS", sum(sizes) // 2)
    assert all(picture.view.thinned for picture in lesion_figures(run, run.dataset(), scores))


def test_scores_are_those_of_the_run(run, page):
    overall = json.loads((run.folder / "validation" / "scores.json").read_text())["overall"]
    for label in overall.values():
        for key in ("dice", "dice_with", "dice_pooled"):
            assert f">{label[key]:.2f}<" in page
    assert "if it is in only one of them, its Dice is 0" in page
    assert "<td>3 of 4</td>" in page
    assert "<b>2 / 3</b>" in page
    assert "<td>0.72 / 0.72</td>" in page, "a volume below 1 ml has two digits"


def test_the_mechanism_and_the_budget_are_words(page, tmp_path, monkeypatch):
    assert "<th>attention</th><td>se (reduction=1)</td>" in page
    for figures in ("lesion_figures", "attention_figures"):
        monkeypatch.setattr(f"attn3d.segmentation.reporting.page.{figures}", lambda *_: [])
    assert "· 1 epoch ·" in report(make_run(tmp_path, epochs=1)).read_text()


def test_a_region_of_several_values_has_one_key_in_the_viewer():
    labels = np.arange(3 * 16, dtype=np.uint8).reshape(4, 4, 3) % 3
    names = {1: "core", 2: "core", 4: "rim"}
    view = view_of("case", scan(labels, np.eye(4)), {"reference": labels}, names)
    page = case_page(view, b"", simulated=False)
    assert re.findall(r"<span><i style=.background: (.*?).></i>(.*?)</span>", page) == [
        (COLORS[0], "core"),
        (COLORS[1], "rim"),
    ]


def test_names_are_escaped(page):
    assert "run &lt;1&gt;" in page
    assert "SDH &amp; &lt;b&gt;" in page
    assert "SDH & <b>" not in page


def test_simulated_scans_are_marked_at_the_top_and_under_every_picture(page):
    assert page.index("All scans here are simulated.") < page.index("Dice of any label")
    captions = Page(page).captions
    assert len(captions) == 1 + 3 + 1  # curves, cases, attention
    assert all(caption.startswith("Simulated. ") for caption in captions)


def test_a_run_on_real_scans_without_attention(tmp_path):
    run = make_run(tmp_path, simulated=False, attention="none")
    page = report(run).read_text()
    assert "imulated" not in page.split("</style>")[1].replace("<th>simulated</th><td>no</td>", "")
    assert "without attention" in page
    assert "This network has no attention." in page
    assert len(Page(page).captions) == 1 + 3


@pytest.mark.parametrize(
    ("windows", "says"), [(((-500.0, 1500.0),), "level -500, width 1500 HU"), (None, "in true proportions;")]
)
def test_scans_are_shown_in_the_first_window_of_the_run(windows, says, tmp_path, monkeypatch):
    shown, draw = [], pictures.plot_lesions
    monkeypatch.setattr(pictures, "plot_lesions", lambda *a, **b: shown.append(b["window"]) or draw(*a, **b))
    page = report(make_run(tmp_path, windows=windows)).read_text()
    assert set(shown) == {None if windows is None else windows[0]}
    assert says in " ".join(page.split())


def test_the_best_the_median_and_the_worst_case_are_shown(run):
    scores = json.loads((run.folder / "validation" / "scores.json").read_text())
    drawn_cases = lesion_figures(run, run.dataset(), scores)
    assert [one.caption for one in drawn_cases] == [
        "Best case, good: IPH Dice 1.00.",
        "Median case, fair: SDH & <b> Dice 0.75.",
        "Worst case, poor: IPH Dice 0.00.",
    ]
    for one in drawn_cases:
        drawn = imread(io.BytesIO(base64.b64decode(one.data.split(",")[1])))
        assert drawn.shape[:2] == (pytest.approx(2 * one.height, abs=2), pytest.approx(2 * one.width, abs=2))
    scores["cases"] = {"good": scores["cases"]["good"]}
    assert [one.caption.split()[0] for one in lesion_figures(run, run.dataset(), scores)] == ["Only"]


def test_attention_is_shown_around_the_lesion_of_the_median_case(run):
    scores = json.loads((run.folder / "validation" / "scores.json").read_text())
    (picture,) = attention_figures(run, run.dataset(), scores)
    assert picture.caption == "se (reduction=1) around the largest lesion of fair."
    for label in scores["cases"]["fair"].values():  # as if it had no lesion in the reference
        label["reference_ml"] = 0
    (picture,) = attention_figures(run, run.dataset(), scores)
    assert picture.caption == "se (reduction=1) around the largest predicted lesion of fair."
    scores["cases"] = {"empty": scores["cases"]["empty"]}
    (picture,) = attention_figures(run, run.dataset(), scores)
    assert picture.caption == "se (reduction=1) in the middle of empty, which has no lesion."


def test_gates_that_do_not_depend_on_their_input_are_named(run, page, monkeypatch):
    assert "No gate is equal for all held-out cases" in " ".join(page.split())
    net = run.network()
    first = next(module for module in net.modules() if isinstance(module, attn3d.SqueezeExcitation))
    nn.init.zeros_(first.excite.weight)
    monkeypatch.setattr(Run, "network", lambda run: net)
    (name,) = same_gates(run, run.dataset())
    assert name.endswith(" channel")
    only = run.cases("validation")[:1]
    monkeypatch.setattr(Run, "cases", lambda run, part, dataset: only)
    assert same_gates(run, run.dataset()) is None


@pytest.mark.parametrize("corner", [(2, 2, 2), (17, 9, 5), (26, 18, 8)])
def test_a_patch_is_centred_on_the_largest_lesion_within_the_scan(corner):
    mask = np.zeros((32, 24, 12), bool)
    mask[tuple(slice(start, start + 3) for start in corner)] = True
    mask[0, 23, 11] = True
    place = np.stack(np.indices(mask.shape)).astype(np.float32)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    patch, voxel = patch_around(MetaTensor(place, affine=affine), mask, (16, 16, 16))
    assert patch.shape == (3, 16, 16, 16)
    np.testing.assert_array_equal(patch[(slice(None), *voxel)], np.array(corner) + 1)
    np.testing.assert_allclose(patch.affine[:3, 3], (np.array(corner) + 1 - voxel) * (1, 1, 5))
    if corner == (17, 9, 5):
        assert voxel[:2] == (8, 8)


def test_a_report_is_not_overwritten_without_the_option(run, page, monkeypatch):
    with pytest.raises(FileError, match=r"report\.html: already exists"):
        report(run)
    for figures in ("lesion_figures", "attention_figures"):
        monkeypatch.setattr(f"attn3d.segmentation.reporting.page.{figures}", lambda *_: [])
    bare = report(run, overwrite=True).read_text()
    assert "The held-out cases have no labelled voxels." in bare
    assert "se (reduction=1) has no weights to show." in bare
    assert not [path for path in run.folder.iterdir() if "unfinished" in path.name]


def test_an_unfinished_run_is_one_clear_line(tmp_path, run, page):
    with pytest.raises(FileError, match=r"config\.json: does not exist"):
        report(tmp_path)
    metrics = run.folder / "metrics.csv"
    before = metrics.read_text()
    try:
        metrics.write_text("epoch,loss\n1,much\n")
        with pytest.raises(FileError, match=r"metrics\.csv: is not a table of numbers"):
            report(run, overwrite=True)
        metrics.unlink()
        with pytest.raises(FileError, match=r"metrics\.csv: does not exist; finish the training"):
            report(run, overwrite=True)
    finally:
        metrics.write_text(before)


@pytest.mark.parametrize(
    ("reference", "found", "says"),
    [
        (2.0, 3.0, "tumour Dice 0.50"),
        (2.0, 0.0, "tumour missed"),
        (0.0, 3.0, "tumour found where there is none"),
        (0, 0, ""),
    ],
)
def test_the_summary_of_a_label(reference, found, says):
    assert pictures._says("tumour", {"reference_ml": reference, "volume_ml": found, "dice": 0.5}) == says


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"overall": {}, "cases": {}, "tolerance_mm": 2, "failed": {}}'])
def test_empty_or_invalid_scores_are_refused(content, tmp_path):
    run = make_run(tmp_path, attention=None)
    run.scores.write_text(content)
    with pytest.raises(FileError, match=r"scores\.json: (has no '|is not valid JSON|has no scores of any case)"):
        report(run.folder)
    assert not (run.folder / "report.html").exists()


def test_attention_is_around_the_predicted_lesion_of_a_case_without_one(tmp_path):
    run = make_run(tmp_path)
    path, folder = tmp_path / "data" / "labelsTr" / "poor.nii.gz", run.scores.parent
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    found = np.zeros(label.shape, np.uint8)
    found[:3, :3, :2] = 1  # far from the middle of the scan
    write_label(folder / "poor.nii.gz", found, label)
    evaluate(folder, path.parent, folder, labels=run.config.labels, overwrite=True, quiet=True)
    drawn = lesion_figures(run, run.dataset(), json.loads(run.scores.read_text()))
    (view,) = [one.view for one in drawn if one.view.name == "poor"]
    heat = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(view.layers[3].volume)))
    inside = nib.affines.apply_affine(np.linalg.inv(heat.affine), view.center)
    assert (inside > -0.5).all()
    assert (inside < np.array(heat.shape) - 0.5).all()
