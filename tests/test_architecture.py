"""Rules that linters do not check: names such as Conv3d occur in two files only, and no file is over 350 lines.

pyproject.toml has the rules of imports, for `lint-imports`.
"""

import ast
import re
from pathlib import Path, PurePath

import pytest

import attn3d

ROOT = Path(attn3d.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
LONGEST = 350
KNOW_DIMENSIONS = (PurePath("layers/spatial.py"), PurePath("layers/conv.py"))
# Names with a number of dimensions, except the name of the package.
DIMENSION = re.compile(r"(?<!attn)[123]d(?![a-z])", re.IGNORECASE)


def names_of_dimensions(source):
    """Names with 1d, 2d or 3d, except those of libraries other than PyTorch."""
    nodes = list(ast.walk(ast.parse(source)))
    foreign = set()
    for node in nodes:
        if (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and node.module.split(".")[0] not in ("torch", "attn3d")
        ):
            foreign.update(name.lower() for name in (node.module, *(alias.name for alias in node.names)))
    found = {name for node in nodes for name in names_in(node) if DIMENSION.search(name)}
    return {name for name in found if name.lower() not in foreign}


def names_in(node):
    """The identifiers of a node, without those of its children; strings that could be identifiers count."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value.isidentifier() else []
    fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname", "module"))
    return [field for field in fields if isinstance(field, str)]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_short_and_independent_of_the_dimension(path):
    source = (ROOT / path).read_text()
    assert len(source.splitlines()) <= LONGEST
    assert path in KNOW_DIMENSIONS or names_of_dimensions(source) == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("layer = nn.Conv3d(1, 1, 1)", {"Conv3d"}),
        ("class BatchNorm2D: pass", {"BatchNorm2D"}),
        ("from torch.nn import Conv1d as convolution", {"Conv1d"}),
        ("layer = getattr(nn, 'Conv3d')", {"Conv3d"}),
        ("x.contiguous(memory_format=torch.channels_last_3d)", {"channels_last_3d"}),
        ("def pool_3d_map(x): ...", {"pool_3d_map"}),
        ('"""For 3-D and 2d."""\nimport attn3d\nx = 0x3d\nattn3d.gate  # Conv3d', set()),
        ("from monai.networks.nets.vista3d import VISTA3D\nVISTA3D()", set()),
    ],
)
def test_names_of_dimensions(source, names):
    assert names_of_dimensions(source) == names
