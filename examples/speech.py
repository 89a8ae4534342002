"""Groups inside groups: speakers have utterances, and an utterance has frames of twelve coefficients.

The model predicts the rest of an utterance from its first frames. It knows the speaker from other utterances: of a
speaker in training, and of a speaker that it never saw. The table is JapaneseVowels (Kudo et al. 1999, UCI archive,
CC BY 4.0). It is in the wheel of aeon, which pip downloads once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fgp_gpytorch import TableModel

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks is a package of the repository
from benchmarks.league.sources import japanese_vowels

NEW_SPEAKERS = [8, 9]
GIVEN_FRAMES = 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/speech"), help="folder of the scores")
    parser.add_argument("--short", action="store_true", help="fewer utterances, coefficients and frames")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    table = japanese_vowels()
    y, known, asked = table.y, 12, 6  # utterances of each speaker
    if options.short:
        y, known, asked = table.y[:3], 4, 2
    rows = table.rows[table.rows["frame"] % 2 == 0]
    order = rows.groupby("speaker")["utterance"].transform(lambda own: pd.factorize(own)[0])  # 0, 1, ... in a speaker
    whole, begun = rows[order < known], rows[(order >= known) & (order < known + asked)]
    start, rest = begun[begun["frame"] < GIVEN_FRAMES], begun[begun["frame"] >= GIVEN_FRAMES]

    model = TableModel(y=y, x=["frame"], group=["speaker", "utterance"])
    model.fit(whole[~whole["speaker"].isin(NEW_SPEAKERS)])

    scores = {}
    for name, new in (("known speakers", False), ("new speakers", True)):
        mine = start["speaker"].isin(NEW_SPEAKERS) == new
        target = rest[rest["speaker"].isin(NEW_SPEAKERS) == new]
        others = whole[whole["speaker"].isin(NEW_SPEAKERS) == new]
        scores[name, "first frames only"] = model.score(start[mine], target)["mse"]
        scores[name, "and other utterances"] = model.score(pd.concat([others, start[mine]]), target)["mse"]
    errors = pd.DataFrame(scores).div(whole[y].var(), axis=0)
    print(f"squared error of the rest of new utterances, 1 is the variance of a column:\n{errors.round(3)}")
    print(errors.mean().round(3).to_string())
    errors.to_csv(options.out / "errors.csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
