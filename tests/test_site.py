"""The site has an entry for every public name, its checker finds what is wrong, and its new pages' programs run."""

import re
import warnings
from pathlib import Path

import pytest

from scripts import check_site, site_hooks

ROOT = Path(__file__).parent.parent


def test_every_public_module_has_an_api_page() -> None:
    pages, source = site_hooks.api_pages(), ROOT / "src/fgp_gpytorch"
    public = [path.stem for path in source.iterdir() if path.stem[0] != "_" and path.name != "py.typed"]
    assert {f"api/{name}.md" for name in public} | {"api/index.md"} == set(pages)


def test_every_public_name_is_on_the_page_of_its_package() -> None:
    pages, names = site_hooks.api_pages(), site_hooks.public_names()
    assert {"fgp_gpytorch.models", "fgp_gpytorch.plots", "fgp_gpytorch.errors"} < set(names)
    for module, own in names.items():
        assert own, module
        if module == "fgp_gpytorch":
            assert all(f"`{name}`" in pages["api/index.md"] for name in own)
        else:
            entries = re.findall(r"^::: (\S+)$", pages[f"api/{module.split('.')[1]}.md"], re.MULTILINE)
            assert entries == [f"{module}.{name}" for name in own]


def test_every_public_name_of_the_package_itself_has_a_page_of_its_own() -> None:
    names = site_hooks.public_names()
    homes = {name for module, own in names.items() if module != "fgp_gpytorch" for name in own}
    packages = {module.split(".")[1] for module in names if module != "fgp_gpytorch"}
    assert set(names["fgp_gpytorch"]) <= homes | packages


def test_every_example_has_a_page_with_its_program() -> None:
    pages = site_hooks.example_pages()
    for path in (ROOT / "examples").glob("*.py"):
        page = pages[f"examples/{path.stem}.md"]
        assert path.read_text().splitlines()[-1] in page
        assert f"[`{path.stem}`]({path.stem}.md)" in pages["examples/index.md"]


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("tables.md", "[a](../examples/speech.py)", "[a](examples/speech.md)"),
        ("experiments/x.md", "[a](../../benchmarks/records/x.jsonl)", "a"),
        ("experiments/x.md", "[a](../results.md#speed), [b](#c)", "[a](../results.md#speed), [b](#c)"),
        ("contributing.md", "[a](docs/tables.md), [b](CHANGELOG.md)", "[a](tables.md), [b](changelog.md)"),
        ("tables.md", "![a](images/countries.png)", "![a](images/countries.png)"),
        ("tables.md", "[a](https://pyro.ai)", "[a](https://pyro.ai)"),
    ],
)
def test_links_out_of_the_documents_lead_to_pages_of_the_site(page: str, text: str, expected: str) -> None:
    file = type("File", (), {"src_uri": page})
    assert site_hooks.on_page_markdown(text, type("Page", (), {"file": file}), None, None) == expected


def test_links_of_notebooks_lead_to_pages() -> None:
    page = type("Page", (), {"file": type("File", (), {"src_uri": "tutorials/table.py"})})
    html = '<a href="../tables.md#columns">1</a><a href="images.py">2</a><a href="https://x.org/a.md">3</a>'
    changed = '<a href="../tables.html#columns">1</a><a href="images.html">2</a><a href="https://x.org/a.md">3</a>'
    assert site_hooks.on_page_content(html, page, None, None) == changed


def test_checker_reports_dead_links_dead_anchors_and_the_network(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(check_site, "missing_names", lambda site, pages: [])
    (tmp_path / "b.html").write_text('<h1 id="top">B</h1>')
    (tmp_path / "a.html").write_text('<a href="b.html#top">1</a><a href="https://pyro.ai">2</a><img src="b.html">')
    assert check_site.problems(tmp_path) == []
    (tmp_path / "a.html").write_text(
        '<a href="c.html">1</a><a href="b.html#none">2</a><script src="https://cdn.example/x.js"></script>'
    )
    assert check_site.problems(tmp_path) == [
        "a.html: fetches https://cdn.example/x.js",
        "a.html: c.html leads nowhere",
        "a.html: b.html#none has no such anchor",
    ]


def test_checker_reports_missing_names(tmp_path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api/errors.html").write_text('<h2 id="fgp_gpytorch.errors.FGPError">FGPError</h2>')
    found = check_site.problems(tmp_path)
    assert "errors.html: no entry of fgp_gpytorch.errors.ShapeError" in found
    assert not any(line.endswith("FGPError") for line in found)


def test_checker_refuses_an_empty_site(tmp_path) -> None:
    assert check_site.problems(tmp_path) == [f"{tmp_path}: expected HTML pages, got none. Try make docs."]


def programs(page: Path) -> str:
    """All Python blocks of a page, as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))


NEW_PAGES = [*sorted((ROOT / "docs/models").glob("*.md")), *sorted((ROOT / "docs/how_to").glob("*.md"))]
NEW_PAGES += [ROOT / "docs" / name for name in ("sharp_bits.md", "users.md")]


@pytest.mark.parametrize("page", [page for page in NEW_PAGES if programs(page)], ids=lambda page: page.stem)
def test_programs_of_the_page_run(page: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # programs that train for seconds are warned of what is missing
        exec(compile(programs(page), page.name, "exec"), {"__name__": page.stem})


def test_program_of_the_home_page_forecasts_countries(tmp_path, monkeypatch) -> None:
    program, call = programs(ROOT / "docs/index.md"), "model.fit(table[~new])"
    assert program.count(call) == 1
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(program.replace(call, "model.fit(table[~new & (table['year'] % 10 == 0)], max_steps=0)"), names)
    assert len(names["forecast"]) == 6 * 16 * 3  # countries, years, columns


@pytest.mark.parametrize("page", [ROOT / "docs/index.md", *NEW_PAGES], ids=lambda page: page.stem)
def test_page_is_short_and_wrapped(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert len(lines) < 200
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
