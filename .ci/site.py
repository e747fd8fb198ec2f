"""What the site has beside the pages of `rayrl_dt/docs`: the other READMEs, and a page of reference for each folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rayrl_dt"
READMES = {
    "index.md": "README.md",
    "inside.md": "rayrl_dt/README.md",
    "cluster.md": "cluster/README.md",
    "results.md": "tune_configs/README.md",
    "speed.md": "tests/benchmarks/README.md",
}
IMAGES = ROOT / ".github" / "images"
LINES = """
.md-grid { max-width: 72rem; }
.md-typeset pre > code { font-size: 0.62rem; }
@media (max-width: 76em) { .md-typeset pre > code { white-space: pre-wrap; } }
"""
"""Lines of code stay whole: where they do not fit, they fold."""


def on_config(config: Any) -> Any:
    """Fill in the navigation of the reference."""
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = [{name: f"api/{name}.md"} for name in rooms()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file of the folder is."""
    for page, readme in READMES.items():
        files.append(File.generated(config, page, content=linked((ROOT / readme).read_text())))
    for image in sorted(IMAGES.iterdir()):
        files.append(File.generated(config, f"images/{image.name}", content=image.read_bytes()))
    files.append(File.generated(config, "lines.css", content=LINES))
    for name, modules in rooms().items():
        text = f"# {name}\n\n" + "\n".join(f"::: {module}\n" for module in modules)
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have the pages of the folder link to one another."""
    return (
        markdown if page.file.src_uri in READMES or page.file.src_uri.startswith("api/") else linked(markdown)
    )


def linked(text: str) -> str:
    """Return a README with pictures where the site has them, and the pages that it names as links."""
    pages = {readme: page for page, readme in READMES.items() if page != "index.md"}
    for page in (PACKAGE / "docs").glob("*.md"):
        pages[f"rayrl_dt/docs/{page.name}"] = pages[page.name] = page.name
    text = text.replace("(.github/images/", "(images/")
    return re.sub(r"`([\w/]+\.md)`", lambda found: _link(found[0], pages.get(found[1])), text)


def _link(quoted: str, page: str | None) -> str:
    return quoted if page is None else f"[{quoted}]({page})"


def rooms() -> dict[str, list[str]]:
    """Return the modules that declare public names, by their folder; the package itself comes first."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name not in ("__init__.py", "__main__.py") and _declares(path):
            found.setdefault(parts[1] if len(parts) > 2 else "rayrl_dt", []).append(".".join(parts))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "rayrl_dt", item[0])))


def _declares(path: Path) -> bool:
    names = (node.targets[0] for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign))
    return any(isinstance(name, ast.Name) and name.id == "__all__" for name in names)
