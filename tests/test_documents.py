"""What the README shows is run, and the tables are those of the records."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import tables

ROOT = Path(__file__).parent.parent


def programs(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_readme_program_forecasts_countries(tmp_path, monkeypatch) -> None:
    program, call = programs("README.md")[0], "model.fit(table[~new])"
    assert program.count(call) == 1
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(program.replace(call, "model.fit(table[~new & (table['year'] % 10 == 0)], max_steps=0)"), names)
    assert len(names["forecast"]) == 6 * 16 * 3  # countries, years, columns
    assert set(names["forecast"]["country"]) == {"Chile", "China", "Kenya", "Poland", "Rwanda", "Zimbabwe"}
    assert names["model"].score(names["past"], names["future"])["n"].tolist() == [6 * 16] * 3
    assert (tmp_path / "countries.png").stat().st_size > 10_000


def test_first_program_for_tables_runs_on_a_table_of_visits(tmp_path, monkeypatch) -> None:
    program, call = programs("docs/tables.md")[0], ".fit(table)"
    assert program.count(call) == 1
    assert len(program.strip().splitlines()) <= 8
    generator = np.random.default_rng(0)
    patients, visits = 12, 5
    table = pd.DataFrame(
        {
            "patient": [f"p{i}" for i in range(patients) for _ in range(visits)],
            "month": generator.uniform(0, 12, patients * visits),
        }
    )
    for lab in ("sodium", "potassium", "glucose"):
        table[lab] = np.sin(table.month) + generator.normal(size=len(table))
    table.loc[::7, "glucose"] = np.nan
    table.to_csv(tmp_path / "visits.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(program.replace(call, ".fit(table, max_steps=0)"), names)
    assert len(names["forecast"]) == 12 * 13 * 3  # patients, months, columns
    assert (tmp_path / "forecasts.png").stat().st_size > 10_000


def test_program_for_several_devices_runs_in_one_process(tmp_path, monkeypatch) -> None:
    program, changes = programs("docs/devices.md")[1], {'"gpu"': '"cpu"', "epochs=200": "epochs=1, progress=False"}
    for before, after in changes.items():
        assert program.count(before) == 1
        program = program.replace(before, after)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(program, names)
    assert len(names["result"].history) == 1
    assert names["result"].trainer.num_training_batches == 360 // 120
    assert (tmp_path / "digits.pt").exists()


def test_tables_are_those_of_the_records() -> None:
    assert tables.main(["--check"]) == 0


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
