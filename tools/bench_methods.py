"""What each method costs: a source and one edit by it, against two plain lanes, over a whole schedule.

``nox -s bench`` runs it. As in ``bench.py``, times are ratios from interleaved runs in one process and peak
memory is what a run adds to the loaded model, each variant in a process of its own. A generated source serves all
methods, so that every lane moves in every step; the last variant keeps every attention map in memory.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any, NamedTuple

from measuring import Run, benchmark, load, peak_of, prepare, read_arguments


class Variant(NamedTuple):
    """A method with its settings; `explicit` keeps all maps."""

    method: str
    settings: dict[str, Any]
    explicit: bool = False


SOURCE, TARGET = "a red car on a road", "a blue car on a road"
VARIANTS = {
    "plain": Variant("none", {}),
    "fpe": Variant("fpe", {}),
    "p2p": Variant("p2p", {}),
    "p2p, blending by words": Variant("p2p", {"blend_words": "car"}),
    "masactrl": Variant("masactrl", {}),
    "masactrl, masks from words": Variant("masactrl", {"words": "car"}),
    "pnp": Variant("pnp", {}),
    "plain with explicit maps": Variant("none", {}, True),
}


def ready(pipe: Any, variant: Variant, size: tuple[int, int] | None, steps: int) -> Run:
    """Plan a variant and give its lanes noise."""
    from attnctl.request import Edit, EditRequest

    edit = Edit(TARGET, variant.method, variant.settings)
    return prepare(pipe, EditRequest((edit,), source_prompt=SOURCE, steps=steps, size=size), explicit=variant.explicit)


def whole(pipe: Any, variant: Variant, size: tuple[int, int] | None, steps: int) -> float:
    """Seconds of a whole schedule; the first step, which checks that controllers act, is not counted."""
    run = ready(pipe, variant, size, steps)
    with run.stack:
        run.step(0)
        return sum(run.step(i) for i in range(1, steps))


def measure_time(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds per step of every variant, from interleaved rounds."""
    import torch

    pipe, size = load(args)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with torch.no_grad():
        whole(pipe, VARIANTS["plain"], size, 2)  # warm up
        for _ in range(args.rounds):
            for name, variant in VARIANTS.items():
                seconds[name].append(whole(pipe, variant, size, args.steps) / (args.steps - 1))
    return {name: statistics.median(found) for name, found in seconds.items()}


def measure_memory(args: argparse.Namespace, name: str) -> int:
    """Bytes that a whole schedule of one variant adds to the loaded model at its peak."""
    import torch

    pipe, size = load(args)
    with torch.no_grad():
        run = ready(pipe, VARIANTS[name], size, args.steps)
        with run.stack:
            return peak_of(run, args.steps)


def table(seconds: dict[str, float], memory: dict[str, int]) -> str:
    """Write the results as a Markdown table."""
    rows = [
        "| source and one edit | ms a step | of plain | peak MiB | of plain |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in VARIANTS:
        cells = [f"{seconds[name] * 1e3:.1f}", f"{seconds[name] / seconds['plain']:.2f} x"]
        cells += [f"{memory[name] / 2**20:.0f}", f"{memory[name] / memory['plain']:.2f} x"] if memory else ["", ""]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure and print."""
    arguments = read_arguments(__doc__, VARIANTS, width=40, steps=6)
    benchmark(arguments, VARIANTS, time_all=measure_time, memory_in=measure_memory, table=table)


if __name__ == "__main__":
    main()
