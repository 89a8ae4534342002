"""What the README shows is run, and the tables are those of the records."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import tables

ROOT = Path(__file__).parent.parent


def test_readme_program_runs_on_a_table_of_visits(tmp_path, monkeypatch) -> None:
    program = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert program.count("epochs=150") == 1
    generator = np.random.default_rng(0)
    patients, visits = 12, 5
    table = pd.DataFrame(
        {
            "patient": [f"p{i}" for i in range(patients) for _ in range(visits)],
            "month": generator.uniform(0, 12, patients * visits),
        }
    )
    for lab in ("sodium", "potassium", "creatinine", "glucose", "albumin"):
        table[lab] = np.sin(table.month) + generator.normal(size=len(table))
    table.loc[::7, "glucose"] = np.nan
    table.to_csv(tmp_path / "visits.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(program.replace("epochs=150", "epochs=2, progress=False"), names)
    assert names["forecast"].shape == (2, 25, 5)
    assert names["paths"].shape == (20, 2, 25, 5)
    assert names["invented"].shape == (2, 25, 5)
    assert names["latents"].mean.shape == (2, 25, 6)
    assert len(names["result"].history) == 2


def test_tables_are_those_of_the_records() -> None:
    assert tables.main(["--check"]) == 0


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
