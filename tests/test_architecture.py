"""The floors of the house: who may import whom, and what is said in one file only.

The rules are functions of a path and a source, so that each is also shown to find a planted violation.
"""

import ast
import inspect
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePath

import pytest

import attn3d

ROOT = Path(attn3d.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))

# From the ground up. A file imports from the floors below its own and, within a folder, from its neighbours.
FLOORS = [
    ["arguments", "capture"],
    ["layers"],
    ["attention"],
    ["mechanisms"],
    ["factory"],
    ["networks"],
    ["distributed", "insertion"],
    ["maps", "planning", "testing", "adapters", "plotting"],
    ["segmentation"],
    ["cli"],
    ["__main__"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
KNOW_MONAI = ("networks", "adapters", "segmentation")
SHARED = ("attn3d.mechanisms.base", "attn3d.mechanisms.registry")
LONGEST = 350
# Names that say a number of dimensions, but for the package's own.
DIMENSION = re.compile(r"(?<!attn)[123]d(?![a-z])", re.IGNORECASE)


def room(path):
    """The part of the house that a file is in: a folder or a file right under the root."""
    return path.parts[0].removesuffix(".py")


def module_name(path):
    parts = ["attn3d", *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, source):
    """(module, line, whether it is inside a function) of every import, also of those made by name."""
    found = []

    def visit(node, lazy):
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path).split(".")
            package = package if path.name == "__init__.py" else package[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from attn3d import x` is an import of the file x.
            names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "attn3d" else [origin]
            found.extend((name, node.lineno, lazy) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant):
                found.append((node.args[0].value, node.lineno, lazy))
        for child in ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(source), False)
    return found


def check_floors(path, source):
    """A file imports from lower floors; a mechanism imports no other, but what all share."""
    if path == PurePath("__init__.py"):
        return
    if room(path) not in FLOOR_OF:
        yield f"{room(path)} has no floor"
        return
    for name, line, _ in imports(path, source):
        if name.split(".")[0] != "attn3d":
            continue
        target = name.split(".")[1] if "." in name else "the package itself"
        if target == room(path):
            if target == "mechanisms" and path.name != "__init__.py" and name not in SHARED:
                yield f"line {line}: a mechanism imports {name}"
        elif FLOOR_OF.get(target, len(FLOORS)) >= FLOOR_OF[room(path)]:
            yield f"line {line}: {room(path)} imports {target}, which is not below it"


def check_monai(path, source):
    """MONAI is imported where its networks are known, and in functions of the contract."""
    for name, line, lazy in imports(path, source):
        if name.split(".")[0] == "monai" and room(path) not in KNOW_MONAI:
            if not (room(path) == "testing" and lazy):
                yield f"line {line}: {name} is imported"


def check_asserts(path, source):
    """No assert: `python -O` would drop the check."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: an assert"


def check_dimensions(path, source):
    """Names that end in 1d, 2d or 3d stand in two files of layers/ alone, those of other libraries aside."""
    if path in (PurePath("layers/spatial.py"), PurePath("layers/conv.py")):
        return
    foreign = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            if node.module.split(".")[0] not in ("torch", "attn3d"):
                foreign.update((alias.asname or alias.name).lower() for alias in node.names)
    for node in ast.walk(ast.parse(source)):
        for name in names_in(node):
            if DIMENSION.search(name) and name.lower() not in foreign:
                yield f"line {getattr(node, 'lineno', '?')}: {name}"


def names_in(node):
    """The identifiers that a node of the tree bears itself; a string that could be one, as for getattr, counts."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value.isidentifier() else []
    if isinstance(node, ast.ImportFrom):
        return [] if node.module and node.module.split(".")[0] not in ("torch", "attn3d") else [node.module or ""]
    fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname"))
    return [field for field in fields if isinstance(field, str)]


def check_length(path, source):
    """A file past 350 lines is two files."""
    if (lines := len(source.splitlines())) > LONGEST:
        yield f"{lines} lines"


RULES = (check_floors, check_monai, check_asserts, check_dimensions, check_length)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("check_"))
@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_keeps_the_rule(path, rule):
    assert list(rule(path, (ROOT / path).read_text())) == []


VIOLATIONS = [
    (check_floors, "layers/gating.py", "from attn3d.mechanisms import CBAM", "layers imports mechanisms"),
    (check_floors, "layers/gating.py", "import attn3d.attention.methods", "layers imports attention"),
    (check_floors, "factory.py", "from attn3d import insertion", "factory imports insertion"),
    (check_floors, "factory.py", "import attn3d", "factory imports the package itself"),
    (check_floors, "factory.py", "def f():\n    from .networks.monai import unets", "factory imports networks"),
    (check_floors, "layers/spatial.py", "from ..factory import create_attention", "layers imports factory"),
    (check_floors, "attention/scopes.py", "from ..mechanisms import base", "attention imports mechanisms"),
    (check_floors, "networks/registry.py", "importlib.import_module('attn3d.insertion')", "networks imports insertion"),
    (check_floors, "mechanisms/bam.py", "from attn3d.mechanisms.cbam import CBAM", "a mechanism imports"),
    (check_floors, "mechanisms/bam.py", "from .cbam import CBAM", "a mechanism imports"),
    (check_floors, "helpers.py", "", "helpers has no floor"),
    (check_monai, "factory.py", "def f():\n    import monai", "monai is imported"),
    (check_monai, "mechanisms/bam.py", "from monai.networks import nets", "monai.networks is imported"),
    (check_monai, "insertion/sites.py", "__import__('monai.data')", "monai.data is imported"),
    (check_monai, "testing/inputs.py", "from monai.data import MetaTensor", "monai.data is imported"),
    (check_asserts, "layers/norms.py", "def f(x):\n    assert x > 0", "line 2: an assert"),
    (check_dimensions, "mechanisms/bam.py", "layer = nn.Conv3d(1, 1, 1)", "Conv3d"),
    (check_dimensions, "layers/norms.py", "class BatchNorm2D: pass", "BatchNorm2D"),
    (check_dimensions, "layers/norms.py", "from torch.nn import Conv1d as convolution", "Conv1d"),
    (check_dimensions, "layers/norms.py", "layer = getattr(nn, 'Conv3d')", "Conv3d"),
    (check_dimensions, "layers/gating.py", "x.contiguous(memory_format=torch.channels_last_3d)", "channels_last_3d"),
    (check_dimensions, "layers/gating.py", "def pool_3d_map(x): ...", "pool_3d_map"),
    (check_length, "layers/gating.py", "\n" * 351, "351 lines"),
]


@pytest.mark.parametrize(("rule", "path", "source", "message"), VIOLATIONS)
def test_a_planted_violation_is_found(rule, path, source, message):
    found = list(rule(PurePath(path), source))
    assert len(found) == 1
    assert message in found[0]


KEPT = [
    (
        check_floors,
        "mechanisms/bam.py",
        "from attn3d.mechanisms.base import Mechanism\nfrom attn3d.layers.gating import gate",
    ),
    (check_floors, "mechanisms/__init__.py", "from attn3d.mechanisms.bam import BAM"),
    (check_floors, "attention/methods.py", "from attn3d.attention import tiles\nfrom . import memory"),
    (check_floors, "segmentation/training.py", "import attn3d.insertion\nimport torch\nimport monai"),
    (check_floors, "__init__.py", "from attn3d.segmentation import train"),
    (check_monai, "testing/inputs.py", "def f():\n    from monai.data import MetaTensor"),
    (check_monai, "networks/monai/unets.py", "from monai.networks.nets import UNet"),
    (check_dimensions, "layers/spatial.py", "from torch.nn import Conv3d"),
    (check_dimensions, "layers/gating.py", '"""For 3-D and 2d."""\nimport attn3d\nx = 0x3d\nattn3d.gate  # Conv3d'),
    (check_dimensions, "networks/unets.py", "from monai.networks.nets.vista3d import VISTA3D\nVISTA3D()"),
    (check_length, "layers/gating.py", "\n" * 350),
]


@pytest.mark.parametrize(("rule", "path", "source"), KEPT)
def test_what_keeps_the_rule_passes(rule, path, source):
    assert list(rule(PurePath(path), source)) == []


def first_cycle(sources):
    """A cycle among the modules that import each other when they are loaded, or None."""
    known = {module_name(path): path for path in sources}
    graph = {
        name: {
            target
            for target, _, lazy in imports(path, sources[path])
            if target in known and not lazy and known[target].name != "__init__.py"
        }
        for name, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_two_files_import_each_other():
    assert first_cycle({path: (ROOT / path).read_text() for path in FILES}) is None


def test_a_planted_cycle_is_found():
    sources = {
        PurePath("attention/a.py"): "from attn3d.attention.b import x",
        PurePath("attention/b.py"): "from .a import y",
    }
    assert set(first_cycle(sources)) == {"attn3d.attention.a", "attn3d.attention.b"}


def test_every_public_name_has_a_docstring_of_its_own():
    for name in attn3d.__all__:
        value = getattr(attn3d, name)
        assert inspect.ismodule(value) or value.__doc__, name
        if inspect.isclass(value):
            inherited = [base.__doc__ for base in value.__mro__[1:]]
            assert value.__doc__ not in inherited, name


def test_the_public_names_are_sorted_and_complete():
    assert sorted(attn3d.__all__) == sorted(set(attn3d.__all__))
    source = (ROOT / "__init__.py").read_text()
    bound = [
        alias.asname or alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    stars = {"*", "_mechanisms"}
    assert stars < set(bound)
    assert sorted([*set(bound) - stars, *attn3d.mechanisms.__all__]) == sorted(attn3d.__all__)
