"""The paper's whole evaluation, what is missing of it: `make paper`. What has a record is not run again.

    python benchmarks/paper.py [--jobs 2] [--mnist ROOT]
    python benchmarks/paper.py --quick [--jobs 2]      # two epochs of everything, into runs/*_quick; minutes

In this order: the trials that settings are chosen by, Table 1, angles that were not observed, ablations, Figure 1(b),
draws of the prior, times in turn (which want the machine for themselves), figures, and the tables of docs/results.md.
Ctrl-C ends it; start it again to go on.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
JUDGED = {
    "fgp_vae_any_context": "equal_best_fgp_vae_any_context_0",
    "fgp_vae_best": "equal_best_fgp_vae_0",
    "fgp_vae_coregionalized_any_context": "equal_best_fgp_vae_coregionalized_any_context_0",
    "fgp_vae_published": "equal_published_fgp_vae_0",
}


def commands(options: argparse.Namespace) -> list[list[str]]:
    """Every benchmark with its arguments."""
    jobs = ["--jobs", str(options.jobs)]
    if options.quick:
        runs = ["choose_rivals.py", "table1.py", "unknown_angles.py", "ablations.py", "scaling.py"]
        arguments = {"table1.py": ["--protocols", "equal"], "unknown_angles.py": ["--known", "0.5", "0"]}
        arguments |= {"scaling.py": ["--only", "1"]}
        quick = [[name, "--quick", *arguments.get(name, []), *([] if name == "scaling.py" else jobs)] for name in runs]
        return [*quick, ["figures.py", "--records", "runs/table1_quick", "--out", "runs/figures_quick"]]
    mnist = [] if options.mnist is None else ["--mnist", str(options.mnist)]
    listed = [
        ["choose_rivals.py", *jobs], ["table1.py", *jobs], ["unknown_angles.py", *jobs],
        ["ablations.py", *jobs], ["scaling.py", *mnist],
    ]  # fmt: skip
    for name, model in JUDGED.items():
        record = RESULTS / "prior_samples" / f"{name}.json"
        if not record.exists():
            record.parent.mkdir(exist_ok=True)
            listed.append(["prior_samples.py", str(RESULTS / "table1" / f"{model}.pt"), "--json", str(record)])
    if not (RESULTS / "epoch_time.json").exists():
        listed.append(["epoch_time.py", "--json", str(RESULTS / "epoch_time.json")])
    return [*listed, ["figures.py"], ["results_page.py"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--jobs", type=int, default=1, help="runs at a time, which share the processors")
    add("--mnist", type=Path, metavar="ROOT", help="folder of the complete MNIST, for Figure 1(b)")
    add("--quick", action="store_true", help="two epochs of everything, into runs/*_quick")
    options = parser.parse_args()
    started = time.perf_counter()
    for name, *arguments in commands(options):
        print(f"== {name} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-W", "ignore", str(HERE / name), *arguments], check=True)
    print(f"all in {(time.perf_counter() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. What was finished has its record: start it again to go on.")
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
