"""Check a built site: links and anchors, nothing from the network, every public name.

python -m scripts.check_site site   prints what is wrong, and returns 1 if anything is.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from scripts import site_hooks

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}  # what a browser loads by itself


class Page(HTMLParser):
    """Anchors of a page, its links, and the addresses that a browser fetches to show it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of one tag."""
        given = {name: value for name, value in attrs if value is not None}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.fetched.append(given.get("href", ""))
        if tag in FETCHED and FETCHED[tag] in given:
            self.fetched.append(given[FETCHED[tag]])


def problems(site: Path) -> list[str]:
    """What is wrong with a site, one line each."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site}: expected HTML pages, got none. Try make docs."]
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for address in page.fetched:
            if urlsplit(address).scheme not in ("", "data") or address.startswith("//"):
                found.append(f"{where}: fetches {address}")
        if path.name == "404.html":
            continue  # its links start at the root of a server
        for address in page.links + page.fetched:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target, anchor = urldefrag(unquote(address))
            file = (path.parent / target.split("?")[0]).resolve() if target else path.resolve()
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                found.append(f"{where}: {address} leads nowhere")
            known = pages.get(file)
            if anchor and known is not None and anchor not in known.anchors | {"__tabbed"}:
                found.append(f"{where}: {address} has no such anchor")
    return found + missing_names(site, pages)


def missing_names(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Public names without an entry in the API pages."""
    found = []
    for module, names in site_hooks.public_names().items():
        if module == site_hooks.PACKAGE:
            continue
        path = site / "api" / f"{module.removeprefix(site_hooks.PACKAGE + '.')}.html"
        anchors = pages[path].anchors if path in pages else set()
        found += [f"{path.name}: no entry of {module}.{name}" for name in names if f"{module}.{name}" not in anchors]
    return found


def main(arguments: list[str]) -> int:
    """Print the problems of the site in a folder."""
    site = Path(arguments[0] if arguments else "site").resolve()
    found = problems(site)
    print("\n".join(found) if found else f"{len(list(site.rglob('*.html')))} pages: links, anchors and names are there")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
