"""Hooks of `mkdocs build`, which add pages to those of this folder.

They add a gallery of the mechanisms, a page for each part of the public interface, a page for the commands, and the
files of the repository that pages link to. They convert formulas to MathML, which browsers show without a script.
"""

import html
import importlib
import inspect
import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

import latex2mathml.converter
from matplotlib.ticker import EngFormatter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

import attn3d
from attn3d.cli import app

ROOT = Path(__file__).parents[1]
PROJECT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")  # pages of the site that lie outside docs/
PARTS = ("testing", "plotting", "networks", "adapters.monai", "adapters.nnunet", "segmentation")
SHAPE = (1, 64, 32, 32, 32)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds every mechanism and every part of the interface to the navigation."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    for entry in reference:
        if "Mechanisms" in entry:
            entry["Mechanisms"] += [f"mechanisms/{name}.md" for name in attn3d.list_attention()]
        elif "Python" in entry:
            entry["Python"] += [f"reference/{name}.md" for name in interface()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and every file of the repository that a page links to."""
    pages = {f"reference/{name}.md": reference_page(name, names) for name, names in interface().items()}
    pages |= {f"project/{name}": (ROOT / name).read_text() for name in PROJECT}
    pages |= {f"notebooks/{path.stem}.md": notebook(path) for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    pages |= {"mechanisms/index.md": gallery(), "reference/command-line.md": command_line()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    texts = pages | {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, text in texts.items():
        for link in LINK.findall(text):
            target = site_uri(uri, link)
            if target.startswith("source/") and target not in files.src_uris:
                path = ROOT / target.removeprefix("source/")
                files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Converts links of the repository to links of the site."""
    uri = page.file.src_uri
    return LINK.sub(lambda link: relpath(site_uri(uri, link[1]), dirname(uri) or "."), markdown)


def on_page_content(html_text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Converts LaTeX to MathML."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        mathml = latex2mathml.converter.convert(html.unescape(found[2]), display=display)
        return f'<div style="overflow-x: auto">{mathml}</div>' if display == "block" else mathml

    return FORMULA.sub(formula, html_text)


def site_uri(uri: str, link: str) -> str:
    """The target of a link of a page: a page of the site, or the copy of a file of the repository in ``source/``."""
    own = uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"
    target = normpath(join(dirname(own), link))
    if target.startswith("docs/"):
        return target.removeprefix("docs/").replace(".ipynb", ".md")  # notebooks are pages
    return f"project/{target}" if target in PROJECT else f"source/{target}"


def interface() -> dict[str, dict[str, str]]:
    """The public names of each part of the library, each with the path of its documentation."""
    parts: dict[str, dict[str, str]] = {}
    for name in attn3d.__all__:
        module = getattr(attn3d, name).__module__
        part = module.split(".")[1]
        if part not in PARTS:
            parts.setdefault(part, {})[f"attn3d.{name}"] = f"{module}.{name}"
    for part in PARTS:
        module = importlib.import_module(f"attn3d.{part}")
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        names = getattr(module, "__all__", [name for name in own if name[0] != "_"])
        parts[part] = {path: path for path in (f"attn3d.{part}.{name}" for name in names)}
    return dict(sorted(parts.items()))


def reference_page(part: str, names: dict[str, str]) -> str:
    """The page of a part, with a block for each name, which mkdocstrings replaces by the documentation."""
    title, _, text = inspect.getdoc(importlib.import_module(f"attn3d.{part}")).partition("\n")
    blocks = [
        f"::: {place}\n    options:\n      heading: {name}\n      toc_label: {name}" for name, place in names.items()
    ]
    return "\n\n".join([f"# {part}", title, text, *blocks])


def gallery() -> str:
    """A card for each mechanism: its figure, a summary, its costs, and where to use it."""
    engineering = EngFormatter(places=1)
    cards = []
    for name in attn3d.list_attention():
        page = (ROOT / "docs" / "mechanisms" / f"{name}.md").read_text()
        module = attn3d.create_attention(name, spatial_dims=3, channels=SHAPE[1])
        parameters = sum(parameter.numel() for parameter in module.parameters())
        multiply_adds = engineering(attn3d.estimate_cost(name, SHAPE, training=False).flops / 2)
        memory = engineering(attn3d.estimate_memory(name, SHAPE))
        title = page.splitlines()[0].removeprefix("# ")
        card = [
            f"**[{title}]({name}.md)**",
            f"![{title.replace('`', '')}](../figures/{name}.png)",
            f"Weighs {module.summary}.",
            page.split("\n\n")[1],
            f"{parameters:,} parameters · {multiply_adds} multiply-adds · {memory}B in training",
            page.split("## Where it goes\n\n")[1].split("\n\n")[0],
        ]
        cards.append('<div class="card" markdown>\n\n' + "\n\n".join(card) + "\n\n</div>")
    cost = f"The costs are those of the default form on one volume of {SHAPE[1]} channels and 32³ voxels."
    head = f"# Mechanisms\n\nEvery mechanism of the registry. {cost}"
    return f'{head}\n\n<div class="grid" markdown>\n\n' + "\n\n".join(cards) + "\n\n</div>\n"


def notebook(path: Path) -> str:
    """The cells of a notebook and their printed output."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            parts.append("```text\n" + "".join(output.get("text", "")) + "```")
    return "\n\n".join(parts)


def command_line() -> str:
    """The commands and their options, from their help."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command, info_name="attn3d"), name="attn3d")
    return text.replace("# `attn3d`", "# Command line", 1)
