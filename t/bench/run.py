"""Measure against numpy.memmap and others, and our formats, on the same bytes, in the same run.

    python t/bench/run.py [--size MIB] [--runs N] [--only WORK,...] [--json FILE] [--svg FILE]

It prints medians over fresh processes. Ours and those of others take turns, and form pairs; the
median of the ratios of pairs is printed, too. On a noisy machine, the ratio says more.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import comparison
from machine import Skip, describe, memory_cgroup
from peers import installed
from report import Report, meanings
from stores import MIB
from tables import add_only
from tqdm import tqdm
from workload import WORKS, limit


class Bench:
    """The processes of a run, and the folder that they work in."""

    def __init__(self, folder: Path, size: int, report: Report) -> None:
        self.folder = folder
        self.size = size  # [MiB]
        self.report = report

    def child(self, command: str, name: str, side: str) -> str:
        """Run a part of a work in a fresh process; return what it printed."""
        arguments = [command, name, side, str(self.folder), str(self.size)]
        with ExitStack() as stack:
            if command == "run" and WORKS[name].limited:
                group = stack.enter_context(memory_cgroup(limit(self.size * MIB)))
                arguments.append(str(group))
            return subprocess.run(
                [sys.executable, comparison.__file__, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                timeout=1800,
                check=True,
            ).stdout

    def sides(self, name: str) -> list[str]:
        """Return the sides of a work: ours, and installed peers."""
        return [side for side in WORKS[name].sides if installed(side)]

    def check_cgroups(self) -> None:
        """Skip works that need a cgroup, if none can be made, before their data is made."""
        try:
            with memory_cgroup(limit(self.size * MIB)):
                pass
        except Skip as e:
            for name in self.report.works:
                if WORKS[name].limited:
                    self.report.skipped[name] = str(e)

    def made(self) -> dict[Path, tuple[str, str]]:
        """Return {path of data that works read: (one of these works, its side)}."""
        return {
            WORKS[name].store(side, self.folder, self.size * MIB).path: (name, side)
            for name in self.report.works
            if name not in self.report.skipped and not WORKS[name].makes_data
            for side in self.sides(name)
        }

    def measure(self, runs: int) -> None:
        """Make the data, and do all works, in turn."""
        self.check_cgroups()
        made = self.made()
        total = len(made) + runs * sum(len(self.sides(name)) for name in self.report.works)
        with tqdm(total=total, desc="bench", unit="process") as bar:
            for name, side in made.values():
                bar.set_postfix_str(f"make {name} {side}")
                self.child("make", name, side)
                bar.update()
            for run in range(runs):
                for name in self.report.works:
                    # so that no side always runs after the same other side
                    for side in self.sides(name)[:: -1 if run % 2 else 1]:
                        bar.set_postfix_str(f"{name} {side}")
                        if name not in self.report.skipped:
                            self.add(name, side, json.loads(self.child("run", name, side)))
                        bar.update()

    def add(self, name: str, side: str, result: dict[str, Any]) -> None:
        """Keep what a process has printed."""
        if "skipped" in result:
            self.report.skipped[name] = result["skipped"]
        else:
            self.report.add(side, result["values"])


def main() -> None:
    """Measure, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="size of the array [MiB]")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes a figure and side")
    add_only(parser, WORKS)
    parser.add_argument("--list", action="store_true", help="say what the figures of works mean")
    parser.add_argument("--json", type=Path, help="write all values to this file")
    parser.add_argument("--svg", type=Path, help="write a picture to this file")
    parser.add_argument("--into", type=Path, help="put the tables into this page of the docs")
    args = parser.parse_args()
    if args.list:
        print(meanings(args.only))
        return
    title = f"{args.size} MiB, medians of {args.runs} processes"
    with tempfile.TemporaryDirectory(prefix="wendelin-bench-", dir=".") as name:
        folder = Path(name)
        report = Report(title, describe(folder), args.only)
        Bench(folder, args.size, report).measure(args.runs)
    for table in report.tables():
        print(f"\n{report.markdown(table)}")
    if args.json:
        args.json.write_text(json.dumps(report.json(), indent=1))
    if args.svg:
        report.draw(args.svg)
    if args.into:
        report.write_into(args.into)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
