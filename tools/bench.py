"""Time per step and peak memory of edits against plain generation and against explicit attention maps.

``nox -s bench`` runs it; ``python tools/bench.py --help`` lists the options. Times are ratios from interleaved steps in
one process: each round runs one step of every variant. Peak memory is what the steps add to the loaded model, each
variant in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from measuring import Run, benchmark, load, peak_of, prepare, read_arguments

VARIANTS = {
    "a": "plain, 2 lanes",
    "b": "FPE, source + 1 edit",
    "c": "the same edit, explicit maps",
    "d": "FPE, source + 4 edits",
    "e": "plain, 5 lanes",
    "f": "FPE on all self layers, source + 4 edits",
}
AGAINST = {"b": "a", "c": "a", "d": "e", "f": "e"}
PROMPTS = ("a blue car on a road", "a green car on a road", "a white car on a road", "a black car on a road")


def ready(pipe: Any, variant: str, size: tuple[int, int] | None, steps: int) -> Run:
    """Plan a variant and give its lanes noise."""
    from attnctl.request import Edit, EditRequest

    edits = 4 if variant in "def" else 1
    method = "none" if variant in "ace" else "fpe"
    settings = {"min_downscale": 1} if variant == "f" else {}
    request = EditRequest(
        edits=tuple(Edit(p, method, settings) for p in PROMPTS[:edits]),
        source_prompt="a red car on a road",
        steps=steps,
        size=size,
    )
    return prepare(pipe, request, explicit=variant == "c")


def measure_time(args: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds per step of every variant, from interleaved rounds."""
    import torch

    seconds: dict[str, list[float]] = {v: [] for v in VARIANTS}
    pipe, size = load(args)
    with torch.no_grad():
        for i in range(args.rounds + 1):
            for variant in VARIANTS:  # attached anew every time: two variants cannot share the layers
                run = ready(pipe, variant, size, args.steps)
                with run.stack:
                    run.step(0)  # the first step checks that controllers act, which later steps do not
                    spent = run.step(1)
                if i:
                    seconds[variant].append(spent)
    return {v: statistics.median(s) for v, s in seconds.items()}


def measure_memory(args: argparse.Namespace, variant: str) -> int:
    """Return the bytes that two steps of one variant add to the loaded model at their peak."""
    import torch

    pipe, size = load(args)
    with torch.no_grad():
        run = ready(pipe, variant, size, args.steps)
        with run.stack:
            return peak_of(run, 2)


def table(seconds: dict[str, float], memory: dict[str, int]) -> str:
    """Write the results as a Markdown table."""
    rows = ["| | variant | ms a step | ratio | peak MiB | ratio |", "| --- | --- | ---: | --- | ---: | --- |"]
    for v, name in VARIANTS.items():
        base = AGAINST.get(v)
        time_ratio = f"{seconds[v] / seconds[base]:.2f} x ({base})" if base else ""
        memory_ratio = f"{memory[v] / memory[base]:.2f} x ({base})" if base and memory else ""
        mib = f"{memory[v] / 2**20:.0f}" if memory else ""
        rows.append(f"| {v} | {name} | {seconds[v] * 1e3:.1f} | {time_ratio} | {mib} | {memory_ratio} |")
    return "\n".join(rows)


def main() -> None:
    """Measure and print."""
    arguments = read_arguments(__doc__, VARIANTS, width=80, steps=50)
    benchmark(arguments, VARIANTS, time_all=measure_time, memory_in=measure_memory, table=table)


if __name__ == "__main__":
    main()
