"""What each method costs: a source and one edit by it, against two plain lanes, over a whole schedule.

``nox -s bench`` runs it. As in ``bench.py``, times are ratios from interleaved runs in one process and peak
memory is what a run adds to the loaded model, each variant in a process of its own. A generated source serves all
methods, so that every lane moves in every step; the last variant keeps every attention map in memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from bench import ExplicitMaps, Run, load, resident


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


def prepare(pipe: Any, variant: Variant, size: tuple[int, int] | None, steps: int) -> Run:
    """Plan a variant and give its lanes noise."""
    from contextlib import ExitStack

    from attnctl.attach import attached
    from attnctl.engine import Engine
    from attnctl.model import Model
    from attnctl.request import Edit, EditRequest
    from attnctl.sampling import make_sampler
    from attnctl.session import EditSession
    from attnctl.steps import steps_of

    edit = Edit(TARGET, variant.method, variant.settings)
    request = EditRequest((edit,), source_prompt=SOURCE, steps=steps, size=size)
    model = Model(pipe, "bench")
    plan = EditSession(model).plan(request)
    noise = model.initial_noise(0, model.latent_size(size))
    for lane in plan.lanes.values():
        lane.latents = noise
    stack = ExitStack()
    attachment = stack.enter_context(attached(pipe.unet, plan.bounds))
    sampler = make_sampler("ddim", pipe.scheduler.config, steps, 0)
    if variant.explicit:
        stack.enter_context(ExplicitMaps(pipe.unet, model.sites))
    return Run(Engine(model, sampler, steps_of(sampler.timesteps), plan.lanes, plan.bounds, attachment), stack)


def whole(pipe: Any, variant: Variant, size: tuple[int, int] | None, steps: int) -> float:
    """Seconds of a whole schedule; the first step, which checks that controllers act, is not counted."""
    run = prepare(pipe, variant, size, steps)
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


def measure_memory(args: argparse.Namespace, variant: Variant) -> int:
    """Bytes that a whole schedule of one variant adds to the loaded model at its peak."""
    import torch

    pipe, size = load(args)
    with torch.no_grad():
        run = prepare(pipe, variant, size, args.steps)
        before, peak, done = resident(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                peak[0] = max(peak[0], resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        with run.stack:
            for i in range(args.steps):
                run.step(i)
        done.set()
        watcher.join()
        if args.device == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return peak[0] - before


def memory_of(args: argparse.Namespace, name: str) -> int:
    """Run `measure_memory` in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--model", args.model, "--device", args.device]
    command += ["--width", str(args.width), "--steps", str(args.steps), *(["--small"] if args.small else [])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sd", help="'sd' (random weights), 'micro', or anything attnctl loads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--width", type=int, default=0, help="first channel count; default 40 on the CPU, 320 on CUDA")
    parser.add_argument("--small", action="store_true", help="a small picture, to try the script")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--child", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.width = args.width or (320 if args.device == "cuda" else 40)
    if args.child:
        print(measure_memory(args, VARIANTS[args.child]))
        return
    seconds = measure_time(args)
    memory = {} if args.no_memory else {name: memory_of(args, name) for name in VARIANTS}
    print(f"model {args.model}, width {args.width}, {args.device}, {args.steps} steps\n")
    print(table(seconds, memory))
    if args.json:
        args.json.write_text(json.dumps({"seconds": seconds, "memory": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()
