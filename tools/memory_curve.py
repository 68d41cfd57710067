"""Does a process that edits all day grow? Resident memory over hundreds of runs of several methods on one tiny model.

    python tools/memory_curve.py --runs 240

Prints one line per method and every tenth of the runs, then the growth per run over the second half, by least squares.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

METHODS = ("none", "fpe", "p2p", "masactrl", "pnp", "sdedit")


def resident() -> int:
    """Return this process's resident memory in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not say how much memory is resident")


def curve(runs: int, methods: Sequence[str] = METHODS) -> list[int]:
    """Return resident memory after every run; drawn and real sources in turn, kept results dropped at once."""
    import torch

    from attnctl.request import Edit, EditRequest
    from attnctl.session import EditSession
    from attnctl.testing import tiny_model

    torch.set_num_threads(1)
    session = EditSession(tiny_model())
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for number in range(runs):
        method = methods[number % len(methods)]
        real = method == "sdedit" or number // len(methods) % 2 == 1  # it edits given pictures alone
        session.run(
            EditRequest(
                (Edit(f"a blue dog {number} on the grass", method),),
                source_prompt="a red cat on the grass",
                pixels=pixels if real else None,
                steps=3,
                seed=number,
                allow_no_op=True,
            ),
            record=number % 5 == 0,
        )
        gc.collect()
        found.append(resident())
    return found


def growth(sizes: Sequence[int]) -> float:
    """Return the slope of the second half in bytes per run, by least squares."""
    half = sizes[len(sizes) // 2 :]
    n = len(half)
    mean_x, mean_y = (n - 1) / 2, sum(half) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in enumerate(half)) / sum((x - mean_x) ** 2 for x in range(n))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=240)
    runs = parser.parse_args().runs
    sizes = curve(runs)
    print("| after run | resident MiB |\n| ---: | ---: |")
    for number in (1, *range(max(1, runs // 10), runs + 1, max(1, runs // 10))):
        print(f"| {number} | {sizes[number - 1] / 2**20:.1f} |")
    print(f"\ngrowth over the second half: {growth(sizes) / 1024:.2f} KiB a run")


if __name__ == "__main__":
    main()
