"""Make the missing runs of the studies, then the figures and the pages.

    python -m benchmarks.runner --list                          # the studies, and the runs that have no record
    python -m benchmarks.runner --jobs 2                        # all missing runs, two at a time: a night
    python -m benchmarks.runner --only ablations --seeds 3      # one study, three seeds of each row
    python -m benchmarks.runner --only table1 ragged SVGP-VAE   # the runs with these values in their keys
    python -m benchmarks.runner --only posterior --out runs/mine  # measure again, with records of your own
    python -m benchmarks.runner --quick --jobs 2                # a short form of everything, into runs/quick

A run that has a record is never made again. Press ctrl-C to stop, and start again to go on.
"""

import argparse
import dataclasses
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import figures, tables
from benchmarks.records import HERE, Key, Plan, Record, identity, made_now
from benchmarks.studies import STUDIES
from benchmarks.study import Study

QUICK = Path("runs/quick")
# Each run has a process of its own, so its peak memory is its own. The server imports the packages once for all.
PROCESSES = multiprocessing.get_context("forkserver")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--list", action="store_true", help="run nothing, list the studies and the missing runs")
    add("--quick", action="store_true", help=f"a short form of everything, into {QUICK}")
    add("--jobs", type=int, default=1, help="runs at a time, which share the processors (studies of time run alone)")
    add("--seeds", type=int, help="seeds of each row, in place of the number that the study plans")
    add("--only", nargs="+", default=[], metavar="WORD", help=f"values in keys, or studies: {', '.join(STUDIES)}")
    add("--out", type=Path, default=HERE, help="folder of the records and models (default benchmarks)")
    options = parser.parse_args(arguments)
    words = [word for word in options.only if word not in STUDIES]
    chosen = [study for name, study in STUDIES.items() if name in options.only or len(words) == len(options.only)]
    plan = Plan(QUICK if options.quick else options.out, options.quick, options.seeds)
    if options.list:
        for study in chosen:
            missing = missing_keys(study, plan, words)
            print(f"{study.name:16} {len(plan.read(study.name)):4} records, {len(missing):3} missing  {study.title}")
            for key in missing:
                print(f"    {words_of(key)}")
        return 0
    if options.quick:
        shutil.rmtree(QUICK, ignore_errors=True)
    if options.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    PROCESSES.set_forkserver_preload(["benchmarks.studies"])
    started = time.perf_counter()
    for study in chosen:
        print(f"== {study.name}: {study.title}", flush=True)
        begun = time.perf_counter()
        run_missing(study, plan, words, options.jobs)
        print(f"== {study.name}: {time.perf_counter() - begun:.0f} s", flush=True)
    if options.quick or not (options.only or options.out != HERE):
        figures.draw(plan)
        tables.write(plan)
    print(f"all in {(time.perf_counter() - started) / 60:.1f} minutes")
    return 0


def run_missing(
    study: Study, plan: Plan, words: Sequence[str] = (), jobs: int = 1,
    make: Callable[[Study, Key, Plan], Record] | None = None,
) -> None:  # fmt: skip
    """Make the runs of a study that have no record, and print a line for each.

    Args:
        study: The study.
        plan: What to run, and where the records are.
        words: Values that the keys must contain.
        jobs: Runs at a time.
        make: Makes a record; None = in a process of its own.
    """

    def one(key: Key) -> None:
        record = (make or in_own_process)(study, key, plan)
        plan.add(study.name, record)
        print(study.say(record), flush=True)

    while missing := missing_keys(study, plan, words):  # records may lead to more keys
        in_turn(one, missing, 1 if study.alone else jobs)


def missing_keys(study: Study, plan: Plan, words: Sequence[str] = ()) -> list[Key]:
    """Return the keys that have no record yet and contain these values."""
    known = {identity(record.key) for record in plan.read(study.name)}
    wanted = {identity(key): key for key in study.keys(plan) if set(words) <= {str(v) for v in key.values()}}
    return [key for name, key in wanted.items() if name not in known]


def in_own_process(study: Study, key: Key, plan: Plan) -> Record:
    """Make a run in a new process.

    Raises:
        KeyboardInterrupt: If ctrl-C stopped it.
        RuntimeError: If the process ended without a record. It has printed why.
    """
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send_record, args=(study.name, key, plan, sender))
    process.start()
    sender.close()
    try:
        return Record(**receiver.recv())
    except EOFError:
        process.join()
        if process.exitcode == 130:
            raise KeyboardInterrupt from None
        raise RuntimeError(f"{study.name}, {words_of(key)}: the run ended without a record") from None
    finally:
        process.join()


def _send_record(name: str, key: Key, plan: Plan, sender: Connection) -> None:
    try:
        sender.send(dataclasses.asdict(make_record(STUDIES[name], key, plan)))
    except KeyboardInterrupt:
        sys.exit(130)


def make_record(study: Study, key: Key, plan: Plan) -> Record:
    """Make a run in this process."""
    settings, result = study.run(key, plan)
    return Record(key, settings, result, made_now())


def in_turn(task: Callable[[Any], object], items: Iterable[Any], jobs: int) -> None:
    """Do a task for each item, so many at a time. After an error or ctrl-C no other item is begun."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for _ in pool.map(task, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def words_of(key: Key) -> str:
    """Return a key in words."""
    return ", ".join(f"{name} {value}" for name, value in key.items())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. Each finished run has its record: start again to go on.")
        sys.exit(130)
