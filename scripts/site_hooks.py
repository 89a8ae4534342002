"""Hooks of MkDocs: pages that the site makes of the code, the examples and the files beside docs/.

`public_names` says which packages have an API page and which names it contains. tests/test_site.py holds them together.
"""

import importlib
import inspect
import pkgutil
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fgp_gpytorch"
FILES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}  # beside docs/, pages of the site


def public_names() -> dict[str, list[str]]:
    """Public names of the package itself, and of each public module below it."""
    package = importlib.import_module(PACKAGE)
    modules = [PACKAGE] + [
        f"{PACKAGE}.{module.name}" for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"
    ]
    return {name: _names_of(name) for name in sorted(modules)}


def api_pages() -> dict[str, str]:
    """Markdown of the API pages, by path."""
    names = public_names()
    pages = {"api/index.md": _index(names)}
    for module in names:
        if module != PACKAGE:
            pages[f"api/{module.removeprefix(PACKAGE + '.')}.md"] = _module_page(module, names)
    return pages


def example_pages() -> dict[str, str]:
    """Markdown of the examples, by path: the program, with its docstring above it."""
    pages = {}
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        found = re.match(r'"""(.*?)"""\n+', text, re.DOTALL)
        assert found is not None, f"{path.name}: expected a docstring. Try one sentence."
        title, _, rest = found[1].strip().partition("\n")
        program = text[found.end() :]
        pages[f"examples/{path.stem}.md"] = (
            f"# {title.rstrip('.')}\n\n{inspect.cleandoc(rest)}\n\n"
            f"The program is `examples/{path.name}` of the repository.\n\n```python\n{program}```\n"
        )
    links = [
        f"- [`{Path(path).name[:-3]}`]({Path(path).name}): {page[2:].splitlines()[0]}" for path, page in pages.items()
    ]
    pages["examples/index.md"] = "# Examples\n\nWhole programs that the tests run.\n\n" + "\n".join(links) + "\n"
    return pages


def on_config(config: Any) -> Any:
    """Add the generated pages to the navigation."""
    pages = [path for path in api_pages() if path != "api/index.md"]
    api = [{"Public names": "api/index.md"}] + [{Path(path).stem: path} for path in pages]
    examples = [path for path in example_pages() if path != "examples/index.md"]
    for section in config.nav:
        if "How to" in section:
            section["How to"].append({"Examples": ["examples/index.md", *examples]})
        if "Results" in section:
            experiments = section["Results"][-1]["Experiments"]
            listed = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs/experiments/README.md").read_text())
            experiments.extend(f"experiments/{name}" for name in dict.fromkeys(listed))
    config.nav.append({"API": api})
    config.nav.append({"Project": [{"Changes": "changelog.md"}, {"Contributing": "contributing.md"}]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {**api_pages(), **example_pages()}
    pages |= {page: (ROOT / name).read_text() for name, page in FILES.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links out of docs/ to the pages that the site has instead; keep only the text of others."""
    here = posixpath.dirname(page.file.src_uri)
    beside = page.file.src_uri in FILES.values()  # written for the folder above docs/

    def replaced(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        path = posixpath.normpath(posixpath.join("." if beside else posixpath.join("docs", here), target))
        if path.startswith("docs/"):
            return f"[{text}]({posixpath.relpath(path.removeprefix('docs/'), here or '.')})" if beside else found[0]
        example = re.fullmatch(r"examples/(\w+)\.py", path)
        to = f"examples/{example[1]}.md" if example else FILES.get(path)
        return f"[{text}]({posixpath.relpath(to, here or '.')})" if to else text

    return re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)#:\s]+)\)", replaced, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Lead the links of notebooks, which MkDocs leaves alone, to the pages of their sources."""
    if not page.file.src_uri.endswith(".py"):
        return html
    return re.sub(r'href="(?![a-z]+:)([^"#]+)\.(?:md|py)(#[^"]*)?"', r'href="\1.html\2"', html)


def _names_of(module: str) -> list[str]:
    loaded = importlib.import_module(module)
    own = [name for name, value in vars(loaded).items() if getattr(value, "__module__", None) == module]
    return sorted(getattr(loaded, "__all__", [name for name in own if name[0] != "_"]), key=str.lower)


def _home(name: str, names: dict[str, list[str]]) -> str:
    """Where a name of the package itself is documented."""
    if f"{PACKAGE}.{name}" in names:
        return f"`{name}`"
    homes = [module for module, own in names.items() if module != PACKAGE and name in own]
    return f"[`{name}`][{homes[0]}.{name}]" if homes else f"`{name}`"


def _summary(value: Any) -> str:
    plain = not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value))
    text = "" if plain else (inspect.getdoc(value) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def _index(names: dict[str, list[str]]) -> str:
    loaded = importlib.import_module(PACKAGE)
    lines = ["# Public names", "", f"`import {PACKAGE}` offers these names. Others are in its packages.", ""]
    lines += ["| name | what it is |", "| --- | --- |"]
    for name in names[PACKAGE]:
        if f"{PACKAGE}.{name}" in names:
            lines.append(f"| [`{name}`]({name}.md) | {_summary(getattr(loaded, name))} |")
        else:
            lines.append(f"| {_home(name, names)} | {_summary(getattr(loaded, name))} |")
    lines += ["", "## Packages", "", "| package | what it contains |", "| --- | --- |"]
    for module in names:
        if module != PACKAGE:
            stem = module.removeprefix(PACKAGE + ".")
            lines.append(f"| [`{stem}`]({stem}.md) | {_summary(importlib.import_module(module))} |")
    return "\n".join(lines) + "\n"


def _module_page(module: str, names: dict[str, list[str]]) -> str:
    loaded = importlib.import_module(module)
    stem = module.removeprefix(PACKAGE + ".")
    lines = [f"# {stem}", "", inspect.getdoc(loaded) or "", "", "| name | what it is |", "| --- | --- |"]
    lines += [f"| [`{name}`][{module}.{name}] | {_summary(getattr(loaded, name))} |" for name in names[module]]
    for name in names[module]:
        lines += ["", f"::: {module}.{name}"]
        inherited = _inherited(getattr(loaded, name), names)
        if inherited:
            lines += ["", f"Inherited by `{name}`: {', '.join(inherited)}."]
    return "\n".join(lines) + "\n"


def _inherited(value: Any, names: dict[str, list[str]]) -> list[str]:
    """Links to the public members that a class has from another public class of the package."""
    if not inspect.isclass(value):
        return []
    links = []
    for name in sorted(dir(value)):
        owner = next((base for base in value.__mro__ if name in vars(base)), None)
        if name[0] == "_" or owner is None or owner is value:
            continue
        homes = [module for module, own in names.items() if module != PACKAGE and owner.__name__ in own]
        if owner.__module__.startswith(PACKAGE) and homes and getattr(vars(owner)[name], "__doc__", None):
            links.append(f"[`{name}`][{homes[0]}.{owner.__name__}.{name}]")
    return links
