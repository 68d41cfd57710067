"""Importing each part of the stack and saying how that went, one JSON line per part.

`attnctl.doctor.examine` runs this in another process (``python -m attnctl.doctor.importing torch ...``): a broken
binary extension may end the interpreter that imports it, and that must not be the doctor's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnctl.files import reason

MARK = "attnctl-probe "
"""Begins each line that is an answer; libraries print other things."""

Findings = dict[str, Any]


def probe(names: Sequence[str], *, timeout: float) -> dict[str, dict[str, Any]]:
    """Import parts in another process, see `run`.

    A part that ends that process, or takes too long, is found out, and the rest go on in a fresh one.

    Args:
        names: The parts, in order.
        timeout: Seconds that one part may take.

    Returns:
        What was found, by part. A part that could not be imported has the key ``error``.
    """
    found: dict[str, dict[str, Any]] = {}
    left = list(names)
    while left:
        answers, ending = _in_child(left, timeout)
        found.update(answers)
        left = [name for name in left if name not in answers]
        if left:  # parts go in order, so the first without an answer is the one that ended the process
            found[left.pop(0)] = {"error": ending}
    return found


def _in_child(names: Sequence[str], timeout: float) -> tuple[dict[str, dict[str, Any]], str]:
    """Run this module on some parts; return the answers that came, and how the process ended."""
    # -P and an explicit path: the child must find what this process finds, and nothing in the working folder.
    folders = [p for p in sys.path if Path(p).is_absolute()]
    if (own := str(Path(__file__).parents[1])) not in folders:
        folders.append(own)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONIOENCODING": "utf-8"}
    variables.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    command = [sys.executable, "-P", "-W", "ignore", "-m", "attnctl.doctor.importing", *names]
    output = errors = ""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=variables,
            timeout=timeout,
            check=False,
        )
        output, errors = done.stdout, done.stderr
        ending = _ending(done.returncode, errors)
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode("utf-8", "replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        ending = f"did not finish within {timeout:g} s"
    except OSError as error:
        ending = f"{command[0]} cannot be run: {reason(error)}"
    answers: dict[str, dict[str, Any]] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # the last line may have been cut off
            if line.startswith(MARK):
                answer = json.loads(line.removeprefix(MARK))
                answers[answer.pop("part")] = answer
    return answers, ending


def _ending(code: int, errors: str) -> str:
    """Say in one line how a process ended."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"its import ended the process ({signal.Signals(-code).name})"
    lines = errors.strip().splitlines() or ["no message"]
    return f"its import ended the process (exit code {code}: {lines[-1].strip()})"


def run(names: Sequence[str]) -> None:
    """Probe parts in order and print what was found after each, so that a later one can end the process.

    Args:
        names: Keys of `PARTS`, or import names of packages.
    """
    answers = sys.stdout
    for name in names:
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = PARTS.get(name, lambda n=name: _package(n))()
        except Exception as error:  # whatever it is, it is the finding
            lines = str(error).strip().splitlines() or [""]
            found = {"error": f"{type(error).__name__}: {lines[0]}".removesuffix(": ")}
        answer = {"part": name, **found, "seconds": time.perf_counter() - started}
        answers.write(MARK + json.dumps(answer) + "\n")
        answers.flush()


def _package(name: str) -> Findings:
    """Import an optional package."""
    from attnctl.compat import package_state

    distributions = {"open_clip": "open-clip-torch"}
    state = package_state(name, distributions.get(name, ""))
    return {"state": state.state, "version": state.version, **({"error": state.error} if state.error else {})}


def _torch() -> Findings:
    """Import torch, multiply on the CPU, and describe the devices."""
    import torch

    product = torch.ones(2, 3) @ torch.ones(3, 2)
    if product.tolist() != [[3.0, 3.0], [3.0, 3.0]]:
        raise RuntimeError(f"torch multiplied matrices wrongly: {product.tolist()}")
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            devices.append(
                {
                    "name": about.name,
                    "memory": about.total_memory,
                    "capability": f"{about.major}.{about.minor}",
                    "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
                }
            )
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": _cpu_bfloat16(torch),
        "built_for": torch.version.cuda or getattr(torch.version, "hip", None),
        "mps": torch.backends.mps.is_available(),
        "devices": devices,
    }


def _cpu_bfloat16(torch: Any) -> bool:
    """Whether the processor computes in bfloat16 itself; elsewhere it is correct but slow."""
    with contextlib.suppress(AttributeError, RuntimeError):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def _diffusers() -> Findings:
    """Import the pipeline classes as a run does."""
    from attnctl.compat import guard_torchvision

    guard_torchvision()
    import diffusers

    assert diffusers.StableDiffusionPipeline is not None  # lazily imported: looking it up is what may fail
    return {"version": diffusers.__version__}


def _transformers() -> Findings:
    """Import the text encoder as a run does."""
    from attnctl.compat import guard_torchvision

    guard_torchvision()
    import transformers

    assert transformers.CLIPTextModel is not None
    return {"version": transformers.__version__}


def _model() -> Findings:
    """Load the embedded model and let its denoiser predict once."""
    import torch

    from attnctl.loading import EMBEDDED, embedded_folder, load_model

    if not embedded_folder().is_dir():
        return {"state": "missing", "folder": os.fspath(embedded_folder())}
    model = load_model(EMBEDDED, device="cpu", dtype="float32")
    latents = model.initial_noise(0, model.latent_size())
    with torch.inference_mode():
        output = model.predict(latents, 500, [model.encode_text("a red car")])
    if not bool(torch.isfinite(output).all()):
        raise RuntimeError("the embedded model predicts NaN or infinite values")
    return {"state": "works", "sites": len(model.sites), "size": list(model.default_size)}


def _plugins() -> Findings:
    """Load every plugin, each alone."""
    from attnctl.registry import Registry

    plugins = Registry.load().plugins
    return {
        "plugins": [
            {
                "name": p.name,
                "owner": p.owner,
                "version": p.version,
                "provides": list(p.provides),
                "error": p.error,
            }
            for p in plugins
        ]
    }


PARTS: dict[str, Callable[[], Findings]] = {
    "torch": _torch,
    "transformers": _transformers,
    "diffusers": _diffusers,
    "model": _model,
    "plugins": _plugins,
}
"""Parts that need more than an import."""


if __name__ == "__main__":
    run(sys.argv[1:])
