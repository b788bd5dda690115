"""The code in the documentation runs, and its tables and options are up to date.

`mkdocs build --strict` checks its links.
"""

import doctest
import functools
import importlib
import inspect
import re

import nbformat
import pytest
import torch
from mktestdocs import check_md_file
from monai.networks.nets import UNet
from nbclient import NotebookClient

import attn3d
from attn3d.mechanisms.registry import REGISTRY
from tests.configurations import OF_TOKENS
from tests.mechanisms.cases import CASES
from tests.scripts import ROOT, load
from tests.segmentation.layouts import task04

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SLOW_PAGES = ("mhsa", "non_local", "which-attention-where")  # their tables take seconds
# Names that examples in docstrings may use without importing them.
AT_HAND = {"attn3d": attn3d, "torch": torch, "UNet": UNet}


def name_of(page):
    return str(page.relative_to(ROOT))


@functools.cache
def script(name):
    """Imports docs/<name>.py once, because its tables share the measured costs."""
    return load(f"docs/{name}.py")


def tables():
    return script("tables")


@pytest.fixture(autouse=True)
def isolated(registries, monkeypatch, tmp_path):
    """Removes what an example registers; runs it in its own folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name_of)
def test_code_runs(page):
    check_md_file(page, memory=True)


@pytest.mark.parametrize("slow", [*SLOW_PAGES, None])
def test_tables_are_up_to_date(slow):
    """The slow pages one by one, and the others in one test, because they share the measured costs."""
    pages = [page for page in tables().pages() if slow == (page.stem if page.stem in SLOW_PAGES else None)]
    with tables().threads():
        stale = [name_of(page) for page in pages if page.read_text() != tables().rewritten(page)]
    assert pages
    assert stale == [], "run `python docs/tables.py`"


def test_benchmarks_are_up_to_date():
    page = DOCS / "benchmarks.md"
    assert page.read_text() == script("benchmarks").rewritten(page.read_text()), "run `python docs/benchmarks.py`"


def test_reliability_is_up_to_date():
    page = DOCS / "reliability.md"
    assert page.read_text() == script("reliability").rewritten(page.read_text()), "run `python docs/reliability.py`"


@pytest.mark.parametrize("name", attn3d.list_attention())
def test_page_has_every_option_with_its_default(name):
    text = (DOCS / "mechanisms" / f"{name}.md").read_text()
    forms = "variant" in inspect.signature(REGISTRY[name]).parameters
    options = text.split("## Both forms" if forms else "## Options")[1].split("## Cost")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", options, re.MULTILINE))
    parameters = inspect.signature(REGISTRY[name]).parameters
    options = {option: found.default for option, found in parameters.items() if found.default is not found.empty}
    assert list(rows) == list(options)
    for option, default in options.items():
        assert rows[option].startswith("`" + repr(default).replace("'", '"') + "`"), option


def cells(page, heading):
    """The cells of the table that starts with ``heading``, by rows."""
    table = page.read_text().split(heading)[1].split("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[1:]]


def test_the_maps_of_every_mechanism_are_listed():
    page = DOCS / "see-what-it-looks-at.md"
    listed = {
        (name, mechanism)
        for names, *_, of in cells(page, "| name | is | of |\n")
        for name in re.findall(r"`(\w+)`", names)
        for mechanism in re.findall(r"`(\w+)`", of)
    }
    weights = {(weight, name) for name, case in CASES.items() for weight in case.weights}
    made = {("axes_map", "coord")}  # by `attention_maps`, from the weights
    assert listed - made == weights - {("axis2", "coord"), ("channel_map", "cpca")}


def test_mechanisms_that_cannot_be_scripted_are_listed():
    text = (DOCS / "add-attention.md").read_text()
    (sentence,) = re.findall(r"`torch\.jit\.script` works too, except with (.*?), and", text)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(OF_TOKENS)


def test_every_mechanism_is_listed_as_supported_or_not_on_shards():
    rows = cells(DOCS / "context-parallel.md", "## What is supported\n\n| | |\n")
    refused = {name for names, reason in rows if reason.startswith("not supported") for name in names.split(", ")}
    supported = {f"`{maker.__name__}`" for name, maker in REGISTRY.items() if name in OF_TOKENS}
    assert refused == {f"`{name}`" for name in REGISTRY if name not in OF_TOKENS}
    assert supported <= {name for names, _ in rows for name in names.split(", ")}


def test_every_mechanism_has_a_case_a_page_and_a_figure():
    for name in attn3d.list_attention():
        assert (ROOT / "tests" / "mechanisms" / "cases" / f"{name}.py").exists()
        assert REGISTRY[name].paper in (DOCS / "mechanisms" / f"{name}.md").read_text()
        assert REGISTRY[name].summary
        assert f"../figures/{name}.png" in (DOCS / "mechanisms" / f"{name}.md").read_text()
        assert (DOCS / "figures" / f"{name}.png").stat().st_size < 120_000


def test_add_attention_runs():
    execute(nbformat.read(DOCS / "notebooks" / "add_attention.ipynb", as_version=4))


def test_segment_task04_runs(tmp_path):
    """On simulated scans in the layout of Task04, with a tiny network and one epoch."""
    task04(tmp_path / "Task04")
    notebook = nbformat.read(DOCS / "notebooks" / "segment_task04.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    budget = {"epochs": 1, "width": 4, "patch_voxels": 4096, "network": "UNet"}
    parameters.source = f"DATA, OUT, BUDGET = {str(tmp_path / 'Task04')!r}, {str(tmp_path / 'out')!r}, {budget!r}"
    execute(notebook)
    assert (tmp_path / "out" / "run" / "report.html").exists()


@pytest.mark.parametrize("path", sorted((DOCS / "notebooks").glob("*.ipynb")), ids=name_of)
def test_notebooks_have_no_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not [cell for cell in cells if any("data" in output for output in cell.get("outputs", ()))]


def execute(notebook):
    NotebookClient(notebook, timeout=None, startup_timeout=600).execute()


def modules_with_examples():
    files = [file for file in sorted((ROOT / "attn3d").rglob("*.py")) if ">>>" in file.read_text()]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples(name):
    module = importlib.import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, extraglobs=AT_HAND, optionflags=options).failed == 0
