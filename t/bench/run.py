"""Measure against numpy.memmap, on the same bytes, in the same run.

    python t/bench/run.py [--size MIB] [--runs N] [--json FILE] [--svg FILE]

Prints medians over fresh processes, ours and memmap's in turn, and their ratio: on noisy
machines it is the ratio that says something. The page cache is warm.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import works
from tqdm import tqdm

SIDES = ("wendelin", "memmap")
Results = dict[str, dict[str, list[float]]]


def run_work(work: str, side: str, folder: Path, size: int) -> dict[str, float]:
    """Run one work in a fresh process."""
    done = subprocess.run(
        [sys.executable, works.__file__, work, side, str(folder), str(size)],
        stdout=subprocess.PIPE,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout)


def measure(folder: Path, size: int, runs: int) -> Results:
    """Return {figure: {side: values}}."""
    results: Results = {}
    with tqdm(total=1 + runs * len(works.WORKS) * len(SIDES), desc="bench", unit="run") as bar:
        run_work("prepare", "-", folder, size)
        bar.update()
        for _ in range(runs):
            for work in works.WORKS:
                for side in SIDES:
                    for figure, value in run_work(work, side, folder, size).items():
                        results.setdefault(figure, {}).setdefault(side, []).append(value)
                    bar.update()
    return results


def ratio(figure: str, sides: dict[str, list[float]]) -> float:
    """Return how fast we are, as a part of memmap: more is better. Median over pairs."""
    pairs = zip(sides["wendelin"], sides["memmap"], strict=True)
    rates = figure.endswith("/s")
    return statistics.median(w / m if rates else m / w for w, m in pairs)


def table(results: Results) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| work | wendelin.core | numpy.memmap | speed, of memmap's |",
        "| --- | ---: | ---: | ---: |",
    ]
    for figure, sides in results.items():
        w, m = (statistics.median(sides[side]) for side in SIDES)
        lines.append(f"| {figure} | {w:.3g} | {m:.3g} | {ratio(figure, sides):.2f} |")
    return "\n".join(lines)


def picture(results: Results, title: str, path: Path) -> None:
    """Draw the ratios: a bar a work, a point a pair."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figures = list(results)[::-1]
    fig, ax = plt.subplots(figsize=(8, 0.6 * len(figures) + 1.4), layout="constrained")
    for y, figure in enumerate(figures):
        sides = results[figure]
        ax.barh(y, ratio(figure, sides), color="#4c78a8", height=0.6)
        for w, m in zip(sides["wendelin"], sides["memmap"], strict=True):
            ax.plot(w / m if figure.endswith("/s") else m / w, y, "o", color="#1b2a41", ms=3)
    ax.axvline(1, color="#e45756", lw=1)
    ax.set_yticks(range(len(figures)), figures)
    ax.set_xscale("log")
    ax.set_xlabel("speed as a part of numpy.memmap's (line: the same; points: single pairs)")
    ax.set_title(title, fontsize=9)
    fig.savefig(path)


def main() -> None:
    """Measure, print the table, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="size of the array [MiB]")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes a figure and side")
    parser.add_argument("--json", type=Path, help="write all values to this file")
    parser.add_argument("--svg", type=Path, help="write a picture to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wendelin-bench-", dir=".") as folder:
        results = measure(Path(folder), args.size, args.runs)
    title = (
        f"{args.size} MiB, median of {args.runs} processes, page cache warm\n"
        f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}"
    )
    print(f"\n{title}\n\n{table(results)}")
    if args.json:
        args.json.write_text(json.dumps({"title": title, "results": results}, indent=1))
    if args.svg:
        picture(results, title, args.svg)


if __name__ == "__main__":
    main()
