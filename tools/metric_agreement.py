"""How far metrics that know no ground truth agree with the ground truth of the drawn world.

    python tools/metric_agreement.py RUN        # a finished `attnctl compare --dataset microbench/full`

Prints a Markdown table: Spearman's rank correlation over all edits (case, method, seed) that have both numbers, and
within cases: methods of one case ranked against each other, averaged over cases, which is what a comparison asks.
Metrics of which less is better count with the sign turned, so that 1 is always full agreement.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable

from attnctl_evaluation.bootstrap import rank_correlation
from attnctl_evaluation.rows import Results, Row

TRUTHS = ("edited right", "kept right", "psnr.truth", "leakage")
PROXIES = (
    "clip-score", "clip-directional", "psnr.outside", "ssim.outside", "lpips.outside", "psnr", "lpips",
)  # fmt: skip

Pair = tuple[float, float]


def sign(results: Results, column: str) -> float:
    """1 where more is better, -1 where less is."""
    return -1.0 if results.header.cards[column]["better"] == "lower" else 1.0


def pairs(records: Iterable[Row], one: str, other: str) -> dict[tuple[str, int], list[Pair]]:
    """Return the values of two columns by case and seed, of rows that have both."""
    found: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for row in records:
        if row.status == "ok" and one in row.scores and other in row.scores:
            a, b = row.scores[one].value, row.scores[other].value
            if a is not None and b is not None:
                found[row.case, row.seed].append((a, b))
    return found


def agreement(results: Results, proxy: str, truth: str) -> str:
    """Write both correlations of two columns, or nothing where there are none."""
    turn = sign(results, proxy) * sign(results, truth)
    groups = pairs(results.records, proxy, truth)
    every = [pair for group in groups.values() for pair in group]
    whole = rank_correlation([a for a, _ in every], [b for _, b in every]) if len(every) > 2 else None
    within = [rank_correlation([a for a, _ in g], [b for _, b in g]) for g in groups.values() if len(g) > 2]
    known = [value for value in within if value is not None]
    if whole is None or not known:
        return ""
    return f"{turn * whole:+.2f} / {turn * sum(known) / len(known):+.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the comparison's folder")
    results = Results.read(parser.parse_args().run)
    truths = [t for t in TRUTHS if t in results.header.cards]
    print("| metric | " + " | ".join(truths) + " |")
    print("| --- |" + " --- |" * len(truths))
    for proxy in PROXIES:
        if proxy in results.header.cards:
            print(f"| {proxy} | " + " | ".join(agreement(results, proxy, truth) for truth in truths) + " |")


if __name__ == "__main__":
    main()
