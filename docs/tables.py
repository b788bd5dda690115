"""Rewrites the tables between the markers of the pages: ``python docs/tables.py``.

A table starts with the marker ``<!-- table: NAME -->`` and ends with ``<!-- /table -->``. The mechanisms are run with
fake tensors, which have shapes but no memory, so that the numbers are the same on every machine.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import attn3d
from attn3d.mechanisms.registry import REGISTRY
from attn3d.segmentation import Settings

DOCS = Path(__file__).parent
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)
CHANNELS = 64
MAPS = {"2-D, 64 × 64": (64, 64), "3-D, 32 × 32 × 32": (32, 32, 32)}
FORMS = ("compact", "paper")


class Measured(NamedTuple):
    """The costs of a mechanism on one map."""

    parameters: int
    multiply_adds: int
    other: int
    saved: int
    maps_saved: float


class _OtherOperators(TorchDispatchMode):
    """Counts the elements that pass through operators that the FLOP counter does not include."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        counted = operator.overloadpacket in flop_registry or "attention" in str(operator)
        if not (counted or operator.is_view or operator.namespace in ("attn3d", "prim")):
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            self.elements += max((tensor.numel() for tensor in tensors), default=0)
        return result


@contextmanager
def threads(number: int = 1) -> Iterator[None]:
    """Sets the number of threads, since the tiles of attention depend on it and the tables must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def measure(name: str, shape: tuple[int, ...], **options: str) -> Measured:
    """Costs of a mechanism in single precision on a batch of one."""
    spec = (name, options)
    x_shape = (1, CHANNELS, *shape)
    flops = attn3d.estimate_cost(spec, x_shape, training=False).flops
    with FakeTensorMode():
        module = attn3d.create_attention(spec, spatial_dims=len(shape), channels=CHANNELS)
        x = torch.empty(x_shape, requires_grad=True)
        given = [x]
        if getattr(module, "takes_signal", False):
            given.append(torch.empty([1, CHANNELS, *(size // 2 for size in shape)], requires_grad=True))
        saved = saved_for_backward(module, *given)
        with torch.no_grad(), _OtherOperators() as other:
            module(*given)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Measured(parameters, flops // 2, other.elements, saved, saved / (x.numel() * x.element_size()))


def training_memory(spec, shape) -> str:
    """The memory with two threads, since each thread of PyTorch's CPU kernel has its own tile."""
    with threads(2):
        return size(attn3d.estimate_memory(spec, shape))


def saved_for_backward(module: nn.Module, *given: torch.Tensor) -> int:
    """Bytes of the storages that autograd saves in a forward pass, with the input and without parameters."""
    saved = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(*given)
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    return sum({storage._cdata: storage.nbytes() for storage in saved if storage._cdata not in own}.values())


def short(count: float) -> str:
    """A number with three digits and a unit prefix, such as 22.5 M."""
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if count >= unit:
            unit = 1e3 if letter == "k" else unit
            return f"{count / unit:.3g} {letter}"
    return f"{count:,.0f}"


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def cost(name: str) -> list[list[str]]:
    """The costs of a mechanism in each of its forms, in 2-D and 3-D."""
    figures = ["parameters", "multiply-adds", "other elements", "saved for backward"]
    if "variant" not in inspect.signature(REGISTRY[name]).parameters:
        return [["map", *figures], *([label, *_cells(measure(name, shape))] for label, shape in MAPS.items())]
    rows = [["map", "form", *figures]]
    for label, shape in MAPS.items():
        forms = {form: measure(name, shape, variant=form) for form in FORMS}
        if forms["compact"] == forms["paper"]:
            forms = {"both": forms["compact"]}
        for form, found in forms.items():
            rows.append([label, form, *_cells(found)])
    return rows


def modes(name: str) -> list[list[str]]:
    """The costs of the non-local block with each pairwise function."""
    rows = [["mode", "parameters", "multiply-adds", "other elements", "saved for backward"]]
    for mode in ("embedded_gaussian", "gaussian", "dot_product", "concatenation"):
        rows.append([f"`{mode}`", *_cells(measure(name, MAPS["3-D, 32 × 32 × 32"], mode=mode))])
    return rows


def patterns(name: str) -> list[list[str]]:
    """The costs of each pattern of attention over 32^3 voxels."""
    rows = [["pattern", "a voxel sees", "multiply-adds", "most memory in training"]]
    seen = [
        ("global", "all 32,768"),
        (("window", {"size": 8}), "512, those of its window"),
        (("grid", {"size": 8}), "512, every fourth along each axis"),
        ("axial", "94, on the three lines through it"),
        (("neighborhood", {"size": 7}), "343, those around it"),
        (("pooled_keys", {"stride": 4}), "512 means of 4³ voxels"),
    ]
    x_shape = (1, CHANNELS, *MAPS["3-D, 32 × 32 × 32"])
    for pattern, sees in seen:
        spec = (name, {"pattern": pattern})
        flops = attn3d.estimate_cost(spec, x_shape, training=False).flops
        rows.append([f"`{pattern!r}`".replace("'", '"'), sees, short(flops // 2), training_memory(spec, x_shape)])
    return rows


def summary(_: str) -> list[list[str]]:
    """All mechanisms, their papers and their costs in the compact form in 3-D."""
    rows = [["name", "class", "what it weighs", "paper", "parameters", "multiply-adds", "saved for backward"]]
    for name in attn3d.list_attention():
        found = measure(name, MAPS["3-D, 32 × 32 × 32"])
        parameters, multiply_adds, _, saved = _cells(found)
        kind = REGISTRY[name]
        link = f"[`{name}`](mechanisms/{name}.md)"
        address = kind.paper if kind.paper.startswith("https:") else f"https://arxiv.org/abs/{kind.paper}"
        paper = f"[{kind.paper.removeprefix('https://').removesuffix('.html')}]({address})"
        rows.append([link, f"`{kind.__name__}`", kind.summary, paper, parameters, multiply_adds, saved])
    return rows


def sizes(_: str) -> list[list[str]]:
    """The costs of attention over all voxels and of a gate, for maps of several sizes."""
    rows = [["map", "voxels", "N × N in single precision", "`non_local`", "`non_local` in windows of 8", "`cbam`"]]
    for edge in (8, 16, 32, 64):
        shape = (1, CHANNELS, edge, edge, edge)
        specs = ("non_local", ("non_local", {"pattern": ("window", {"size": 8})}), "cbam")
        flops = [attn3d.estimate_cost(spec, shape, training=False).flops for spec in specs]
        cells = [f"{short(of // 2)}, {training_memory(spec, shape)}" for of, spec in zip(flops, specs, strict=True)]
        rows.append([f"{edge}³", f"{edge**3:,}", size(4 * edge**6), *cells])
    return rows


def settings(_: str) -> list[list[str]]:
    """The settings of a training."""
    rows = [["setting", "default", ""]]
    for name, field in Settings.model_fields.items():
        value = list(field.default) if isinstance(field.default, tuple) else field.default
        rows.append([f"`{name}`", f"`{json.dumps(value)}`", field.description or ""])
    return rows


TABLES: dict[str, Callable[[str], list[list[str]]]] = {
    function.__name__: function for function in (cost, modes, patterns, summary, sizes, settings)
}


def between_marks(page: str, name: str, text: str) -> str:
    """The page with a new text between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.split(start)
    return f"{before}{start}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"


def rewritten(page: Path) -> str:
    """The text of a page with its current tables."""

    def table(found: re.Match[str]) -> str:
        rows = TABLES[found[2]](page.stem)
        numbers = "".join("r" if cell[0].isdigit() else "l" for cell in rows[-1][1:])
        return f"{found[1]}\n{markdown(rows, 'l' + numbers)}\n{found[3]}"

    return MARKED.sub(table, page.read_text())


def pages() -> list[Path]:
    """The pages with tables."""
    return [page for page in sorted(DOCS.rglob("*.md")) if MARKED.search(page.read_text())]


def _cells(found: Measured) -> list[str]:
    saved = f"{size(found.saved)}, {found.maps_saved:.2f} maps"
    return [f"{found.parameters:,}", short(found.multiply_adds), short(found.other), saved]


def markdown(rows: list[list[str]], align: str) -> str:
    """A table in Markdown. The first row is the heading; ``align`` has a letter for each column, l or r."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))


if __name__ == "__main__":
    with threads():
        for page in pages():
            page.write_text(rewritten(page))
            print(page.relative_to(DOCS.parent))
