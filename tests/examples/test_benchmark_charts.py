"""The charts of the benchmark's figures, and the pages that show them."""

from itertools import combinations

import pytest

from tests.scripts import ROOT, load

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def page():
    """The script that writes docs/benchmarks.md."""
    return load("docs/benchmarks.py")


@pytest.fixture(scope="module")
def charts(page):
    from docs import benchmark_charts  # the script makes it importable

    return benchmark_charts


def test_the_page_says_whether_cuda_has_been_measured(page):
    measured = any(page.FIGURES.glob("*_cuda.json"))
    assert ("No CUDA device has been measured yet" in page.PAGE.read_text()) != measured


def test_the_page_of_charts_shows_all(charts):
    text = (DOCS / "charts.md").read_text()
    for name, (subject, _) in charts.CHARTS.items():
        assert f"](figures/{name}.svg)" in text
        assert f"](figures/{subject}.json)" in text


@pytest.mark.parametrize("count", [2, 10, 25])
def test_curves_can_be_distinguished(charts, count):
    points = [[size**3, 1e-3 * size, 1000 * size, 1e-3 * size, 1e-3 * size] for size in (8, 16)]
    curve = {"kind": "mechanism", "points": points, "slopes": [1.0, 1.0], "loaded": False}
    curves = [curve | {"name": f"mechanism {index}"} for index in range(count)]
    surroundings = {"machine": "a machine", "threads": 1, "versions": {"torch": "2"}, "dtype": "float32"}
    figure = charts.growth({"scaling": curves} | surroundings, "mechanism")
    for axes in figure.axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == count


@pytest.mark.parametrize("name", ["mechanisms", "insertion", "scaling_mechanisms", "scaling_patterns"])
def test_the_parts_of_a_chart_do_not_overlap(page, name):
    subject, draw = page.CHARTS[name]
    figure = draw(page.measured(subject))
    figure.draw_without_rendering()
    boxes = [part.get_tightbbox() for part in (*figure.axes, *figure.legends, *figure.texts)]
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_a_chart_is_the_same_file_again(page, charts, tmp_path):
    files = [tmp_path / name for name in ("one.svg", "other.svg")]
    for file in files:
        charts.save(charts.insertion(page.measured("insertion")), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert ">SegResNet</text>" in files[0].read_text()  # as text
