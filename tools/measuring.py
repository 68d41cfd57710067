"""What the benchmarks share: models to measure, ready runs, the explicit attention of published code, peak memory."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnctl.request import EditRequest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def read_arguments(about: str | None, variants: Iterable[str], *, width: int, steps: int) -> argparse.Namespace:
    """Read the command line, which is the same for all benchmarks.

    Args:
        about: What ``--help`` says.
        variants: What is measured.
        width: First channel count of the random model on a CPU; 320, the real one, is taken on CUDA.
        steps: Steps of the schedule.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="sd", help="'sd' (random weights), 'micro', or anything attnctl loads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--width", type=int, help=f"first channel count; default {width} on the CPU, 320 on CUDA")
    parser.add_argument("--small", action="store_true", help="a small picture, to try the script")
    parser.add_argument("--steps", type=int, default=steps, help="steps of the schedule")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--child", choices=list(variants), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.width = arguments.width or (320 if arguments.device == "cuda" else width)
    return arguments


def widened(device: str, width: int) -> Any:
    """Build a Stable-Diffusion-1.x-shaped pipeline with random weights; `width` 320 is the real one (860 M)."""
    import diffusers
    import torch

    from attnctl.testing.tiny import tiny_sd

    pipe = tiny_sd()
    heads = max(1, width // 40)  # the real head widths: 40, 80, 160, 160
    torch.manual_seed(0)
    pipe.unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        attention_head_dim=heads,
        cross_attention_dim=pipe.text_encoder.config.hidden_size,
        norm_num_groups=8,
    )
    pipe.to(device, torch.float16 if device == "cuda" else torch.float32)
    return pipe


def load(args: argparse.Namespace) -> tuple[Any, tuple[int, int] | None]:
    """Return the pipeline and picture size of the model to measure."""
    import torch

    torch.set_num_threads(1)
    if args.model == "sd":
        return widened(args.device, args.width), (64 * 2, 64 * 2) if args.small else None
    from attnctl.loading import load_model

    return load_model(args.model, device=args.device).pipe, None


class ExplicitProcessor:
    """Attention with its map in memory, edited in place as the published controllers do: all heads of all rows at once.

    Rows are [u_src, u_edit, c_src, c_edit]; in the edited layers the last row's map is overwritten by the third's.
    """

    def __init__(self, edited: bool) -> None:
        self.edited = edited

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, *_: Any, **__: Any) -> Any:
        """Attend for one layer of a UNet without masks and group norms."""
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        maps = (q @ k.transpose(1, 2) * attn.scale).softmax(-1)
        if self.edited:
            cond = maps[maps.shape[0] // 2 :].view(2, attn.heads, *maps.shape[1:])
            cond[1] = cond[0]
        return attn.to_out[0](attn.batch_to_head_dim(maps @ v))


class ExplicitMaps:
    """Installs explicit attention on every layer, FPE's replacement at downscale 2 and above; restores on exit."""

    def __init__(self, unet: Any, sites: Any) -> None:
        self.layers = [(unet.get_submodule(s.path), s) for s in sites if s.kind != "feature"]

    def __enter__(self) -> None:
        self.kept = [layer.processor for layer, _ in self.layers]
        for layer, site in self.layers:
            layer.set_processor(ExplicitProcessor(site.kind == "self" and site.downscale >= 2))

    def __exit__(self, *_: object) -> None:
        for (layer, _), processor in zip(self.layers, self.kept, strict=True):
            layer.set_processor(processor)


@dataclass
class Run:
    """One variant, ready to advance step by step."""

    engine: Any
    stack: ExitStack

    def step(self, index: int) -> float:
        """Run one step; return its seconds: CPU time of one thread on the CPU, wall-clock elsewhere."""
        import torch

        cuda = self.engine.model.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        start = clock()
        self.engine.advance(self.engine.steps[index])
        if cuda:
            torch.cuda.synchronize()
        return clock() - start


def prepare(pipe: Any, request: EditRequest, *, explicit: bool = False) -> Run:
    """Plan a request and give its lanes noise.

    Args:
        pipe: The pipeline.
        request: What to measure, from a generated source.
        explicit: Whether every layer keeps its map in memory, as published code does.
    """
    from attnctl.engine.attach import attached
    from attnctl.engine.lanes import make_lanes
    from attnctl.engine.loop import Engine
    from attnctl.model import Model
    from attnctl.session import EditSession

    model = Model(pipe, "bench")
    plan = EditSession(model).plan(request)
    noise = model.initial_noise(0, model.latent_size(request.size))
    lanes, bounds = make_lanes(plan, model), plan.fresh_bounds()
    for lane in lanes.values():
        lane.latents = noise
    stack = ExitStack()
    attachment = stack.enter_context(attached(pipe.unet, bounds))
    schedule = model.schedule("ddim", request.steps)
    if explicit:
        stack.enter_context(ExplicitMaps(pipe.unet, model.sites))
    return Run(Engine(model, schedule, lanes, bounds, attachment), stack)


def resident() -> int:
    """Return the process's resident bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_of(run: Run, steps: int) -> int:
    """Return the bytes that the first steps of a run add to what is there before them, at their peak."""
    import torch

    if run.engine.model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for i in range(steps):
            run.step(i)
        return torch.cuda.max_memory_allocated() - before
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for i in range(steps):
            run.step(i)
    finally:
        done.set()
        watcher.join()
    return peak[0] - before


def memory_of(arguments: argparse.Namespace, variant: str) -> int:
    """Measure one variant's memory in a process of its own, so that none profits from another's allocations."""
    command = [sys.executable, sys.argv[0], "--child", variant, "--model", arguments.model]
    command += ["--device", arguments.device, "--width", str(arguments.width), "--steps", str(arguments.steps)]
    command += ["--small"] if arguments.small else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def benchmark(
    arguments: argparse.Namespace,
    variants: Iterable[str],
    *,
    time_all: Callable[[argparse.Namespace], dict[str, float]],
    memory_in: Callable[[argparse.Namespace, str], int],
    table: Callable[[dict[str, float], dict[str, int]], str],
) -> None:
    """Measure every variant and print a table; or, as a child, the memory of one.

    Args:
        arguments: What `read_arguments` gave.
        variants: What is measured.
        time_all: Gives the seconds of a step by variant.
        memory_in: Gives the bytes that a variant adds; called in a process of its own.
        table: Lays the seconds and bytes out.
    """
    if arguments.child:
        print(memory_in(arguments, arguments.child))
        return
    seconds = time_all(arguments)
    memory = {} if arguments.no_memory else {name: memory_of(arguments, name) for name in variants}
    print(f"model {arguments.model}, width {arguments.width}, {arguments.device}, {arguments.steps} steps\n")
    print(table(seconds, memory))
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": seconds, "memory": memory}, indent=2) + "\n")
