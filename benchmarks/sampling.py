"""What drawing costs: two processes beside one, what writing takes of it, memory over a longer run, and a whole year.

    python benchmarks/sampling.py [year]     # after `make demo`; `year` draws 1991, half an hour on two cores

The demo's model and observations, segments of ten days with a halo of four, one thread a process. Pairs of runs take
turns. What a process takes to start is measured by a run that has nothing left to draw, and taken off both.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sample import assimilate
from sample.config import SampleConfig
from slams.config import load
from slams.contracts.analysis import Analysis

PAIRS = 3
WORDS = ["period.every_days=0", "period.segment_days=10", "period.halo_days=4", "period.first_day=1991-01-06"]


def command(folder, last_day, members, block):
    """Of a sampling job."""
    more = [f"folder={folder}", f"period.last_day={last_day}", f"members={members}", f"members_per_unit={block}"]
    return [sys.executable, "-m", "sample", "configs/sample/tiny.yaml", *WORDS, *more]


def run(words, processes=1):
    """Of so many processes that share a run: wall time, processor time (s) and the most memory of one (GiB)."""
    began, started = time.perf_counter(), []
    for rank in range(processes):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL))
    ended = [os.wait4(process.pid, 0) for process in started]
    if any(status for _, status, _ in ended):
        sys.exit(f"{' '.join(words)}: failed")
    processor = sum(used.ru_utime + used.ru_stime for _, _, used in ended)
    return time.perf_counter() - began, processor, max(used.ru_maxrss for _, _, used in ended) / 2**20


def scaling(folder):
    """Forty member-days for each of two units, by one process and by two."""
    ratios = []
    for _ in range(PAIRS):
        words = command(folder, "1991-01-15", 8, 4)
        seconds = []
        for processes in (1, 2):
            shutil.rmtree(folder, ignore_errors=True)
            whole, _, gib = run(words, processes)
            start, _, _ = run(words, 1)
            seconds.append(whole - start)
        ratios.append(seconds[0] / seconds[1])
        print(f"80 member-days: one process {seconds[0]:.1f} s, two {seconds[1]:.1f} s, {gib:.2f} GiB each", flush=True)
    print(f"two processes draw {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast")


def writing(folder):
    """Share of a run that goes into product, departures, mean and spread, ledger and verification."""
    spent = 0.0

    def timed(owner, name):
        function = getattr(owner, name)

        def measured(*arguments, **words):
            nonlocal spent
            began = time.perf_counter()
            found = function(*arguments, **words)
            spent += time.perf_counter() - began
            return found

        setattr(owner, name, measured)

    for owner, name in ((Analysis, "write"), (Analysis, "close_unit"), (assimilate, "write_departures")):
        timed(owner, name)
    timed(assimilate, "_finish_segment")
    timed(assimilate, "_finish")
    words = command(folder, "1991-01-25", 8, 8)[4:]
    began = time.perf_counter()
    assimilate.run(load(SampleConfig, "configs/sample/tiny.yaml", words))
    whole = time.perf_counter() - began
    print(f"writing: {spent:.2f} s of {whole:.1f} s, {100 * spent / whole:.1f} %", flush=True)


def memory(folder):
    """Three segments and thirty, of one member, in few steps, on whose number nothing that is held depends.

    Already among the three is one that lies in two months.
    """
    for last_day in ("1991-02-04", "1991-11-01"):
        shutil.rmtree(folder, ignore_errors=True)
        seconds, _, gib = run([*command(folder, last_day, 1, 1), "sampler.steps=2"])
        print(f"to {last_day}: {seconds:.0f} s, {gib:.3f} GiB", flush=True)


def year(folder):
    """Sixteen members on every day of the year whose neighbours were observed."""
    seconds, processor, gib = run(command(folder, "1991-12-27", 16, 8), 2)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"356 days x 16 members: {seconds:.0f} s by two processes, {processor:.0f} s of processor time")
    print(f"{gib:.2f} GiB each, {size / 2**20:.0f} MiB written")


def main():
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    if not Path("runs/demo/score/bundle").exists():
        sys.exit("benchmarks/sampling.py: runs/demo: holds no model; `make demo` makes it")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        if sys.argv[1:] == ["year"]:
            year(folder)
            return
        memory(folder)  # first: what this process holds at most counts as its children's
        scaling(folder)
        writing(Path(scratch, "written"))


if __name__ == "__main__":
    main()
