"""Time per step and peak memory of edits against plain generation and against explicit attention maps.

``nox -s bench`` runs it; ``python tools/bench.py --help`` lists the options. Times are ratios from interleaved steps in
one process: each round runs one step of every variant. Peak memory is what the steps add to the loaded model, each
variant in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
STEPS = 50
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


def prepare(pipe: Any, variant: str, size: tuple[int, int] | None) -> Run:
    """Plan a variant and give its lanes noise."""
    from attnctl.attach import attached
    from attnctl.engine import Engine
    from attnctl.model import Model
    from attnctl.request import Edit, EditRequest
    from attnctl.session import EditSession

    edits = 4 if variant in "def" else 1
    method = "none" if variant in "ace" else "fpe"
    settings = {"min_downscale": 1} if variant == "f" else {}
    request = EditRequest(
        edits=tuple(Edit(p, method, settings) for p in PROMPTS[:edits]),
        source_prompt="a red car on a road",
        steps=STEPS,
        size=size,
    )
    model = Model(pipe, "bench")
    session = EditSession(model)
    plan = session.plan(request)
    noise = model.initial_noise(0, model.latent_size(size))
    for lane in plan.lanes.values():
        lane.latents = noise
    stack = ExitStack()
    attachment = stack.enter_context(attached(pipe.unet, plan.bounds))
    sampler = session._sampler(request)
    from attnctl.steps import steps_of

    steps = steps_of(sampler.timesteps)
    if variant == "c":
        stack.enter_context(ExplicitMaps(pipe.unet, model.sites))
    return Run(Engine(model, sampler, steps, plan.lanes, plan.bounds, attachment), stack)


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


def load(args: argparse.Namespace) -> tuple[Any, tuple[int, int] | None]:
    """Return the pipeline and picture size of the model to measure."""
    import torch

    torch.set_num_threads(1)
    if args.model == "sd":
        return widened(args.device, args.width), (64 * 2, 64 * 2) if args.small else None
    from attnctl.loading import load_model

    return load_model(args.model, device=args.device).pipe, None


def measure_time(args: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds per step of every variant, from interleaved rounds."""
    import torch

    seconds: dict[str, list[float]] = {v: [] for v in VARIANTS}
    pipe, size = load(args)
    with torch.no_grad():
        for i in range(args.rounds + 1):
            for variant in VARIANTS:  # attached anew every time: two variants cannot share the layers
                run = prepare(pipe, variant, size)
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
        run = prepare(pipe, variant, size)
        if args.device == "cuda":
            run.step(0)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run.step(1)
            return torch.cuda.max_memory_allocated() - before
        before, peak, done = resident(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                peak[0] = max(peak[0], resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        run.step(0)
        run.step(1)
        done.set()
        watcher.join()
        return peak[0] - before


def resident() -> int:
    """Return the process's resident bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of(args: argparse.Namespace, variant: str) -> int:
    """Run `measure_memory` in a process of its own, so that no variant profits from another's allocations."""
    command = [sys.executable, __file__, "--child", variant, "--model", args.model, "--device", args.device]
    command += ["--width", str(args.width), *(["--small"] if args.small else [])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sd", help="'sd' (random weights), 'micro', or anything attnctl loads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--width", type=int, default=0, help="first channel count; default 80 on the CPU, 320 on CUDA")
    parser.add_argument("--small", action="store_true", help="a small picture, to try the script")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--child", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.width = args.width or (320 if args.device == "cuda" else 80)
    if args.child:
        print(measure_memory(args, args.child))
        return
    seconds = measure_time(args)
    memory = {} if args.no_memory else {v: memory_of(args, v) for v in VARIANTS}
    print(f"model {args.model}, width {args.width}, {args.device}, {platform.processor() or platform.machine()}\n")
    print(table(seconds, memory))
    if args.json:
        args.json.write_text(json.dumps({"seconds": seconds, "memory": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()
