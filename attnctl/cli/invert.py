"""``attnctl invert`` and ``attnctl cache``: inversions by themselves, and those that are kept."""

from __future__ import annotations

import datetime
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl.cli.progress import RunProgress
from attnctl.cli.requesting import check_model, check_picture, kept_trajectories, wanted_model
from attnctl.config import parse_assignments, shown
from attnctl.errors import InputError
from attnctl.example import Example
from attnctl.inversion import InversionSpec
from attnctl.registry import Registry
from attnctl.request import Sampling, check_text
from attnctl.terminal import facts, plain, quoted, say, show, show_json, table

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.engine.inverter import SourceInversion
    from attnctl.model import Model

INVERSION = "ddim"
"""The inversion if none is named."""

METRIC = "lpips"
"""Measured beside PSNR if it is installed and nothing else is asked for."""


def invert(arguments: Namespace) -> int:
    """Carry out ``attnctl invert``.

    Raises:
        AttnctlError: Something that the user can mend.
    """
    registry = Registry.load(arguments.plugins)
    spec, sampling = _read(arguments, registry)
    metrics = _metrics(arguments, registry)
    with RunProgress() as progress:
        progress.doing("loading the model")
        from attnctl.session import EditSession

        model = wanted_model(arguments)
        pixels = _pixels(arguments, model)
        cache = kept_trajectories(arguments)
        found = EditSession(model, registry, cache=cache).invert(
            pixels,
            spec,
            steps=sampling.steps,
            guidance=sampling.guidance,
            negative_prompt=sampling.negative_prompt,
            seed=sampling.seed,
            on_event=progress,
        )
        progress.doing("measuring")
        scores = _scores(metrics, found, pixels)
    _write(arguments, found)
    data = _data(found, scores, None if cache is None else str(cache.folder))
    if arguments.json:
        show_json(data)
    else:
        _show(data)
    return 0


def cache(arguments: Namespace) -> int:
    """Carry out ``attnctl cache``: list what is kept, or take it away.

    Raises:
        InputError: A file cannot be taken away.
    """
    from attnctl.cache import TrajectoryCache, cache_folder

    kept = TrajectoryCache(cache_folder())
    entries = kept.entries()
    if arguments.action == "clear":
        removed = kept.clear()
        freed = sum(entry.size for entry in entries)
        if arguments.json:
            show_json({"folder": str(kept.folder), "removed": removed, "bytes": freed})
        else:
            show(plain(f"removed {removed} inversions, {_size(freed)}, from {kept.folder}"))
        return 0
    if arguments.json:
        show_json({"folder": str(kept.folder), "limit": kept.limit, "entries": [vars(entry) for entry in entries]})
        return 0
    rows = [
        (e.key[:12], e.inversion or "damaged", e.steps or "", quoted(e.prompt), _size(e.size), _time(e.used))
        for e in entries
    ]
    if rows:
        show(table(("kept", "inversion", "steps", "prompt", "size", "last used"), rows, right=("steps", "size")))
    total = _size(sum(entry.size for entry in entries))
    show(plain(f"{len(entries)} inversions, {total} of at most {_size(kept.limit)}, in {kept.folder}"))
    return 0


def _read(arguments: Namespace, registry: Registry) -> tuple[InversionSpec, Sampling]:
    """Check everything that can be checked without the model."""
    check_model(arguments)
    check_text(arguments.source_prompt)
    sampling = Example.of(arguments.model).fill(Sampling.of(arguments))
    if sampling.scheduler != "ddim":
        raise InputError(
            f"a picture is inverted with DDIM, so --scheduler cannot be {sampling.scheduler}",
            hint="leave --scheduler out",
        )
    name = arguments.inversion or INVERSION
    settings = {key.removeprefix(f"{name}."): value for key, value in parse_assignments(arguments.settings).items()}
    if arguments.preset is not None:
        settings["preset"] = arguments.preset.removeprefix(f"{name}.")
    spec = InversionSpec(name, arguments.source_prompt).with_settings(settings)
    if registry.inversion(name).needs_prompt and not arguments.source_prompt.strip():
        raise InputError(f"{name} needs a prompt that describes the picture", hint="give --source-prompt")
    registry.make_inversion(spec)
    if arguments.out is not None and Path(arguments.out).exists():
        raise InputError(f"{arguments.out} exists already", hint="name another file with --out")
    check_picture(arguments.image, arguments.fit, arguments.size)
    return spec, sampling


def _metrics(arguments: Namespace, registry: Registry) -> list[Any]:
    names = arguments.metrics if arguments.metrics is not None else [n for n in (METRIC,) if n in registry.metrics]
    return [registry.make_metric(name, {}) for name in names]


def _pixels(arguments: Namespace, model: Model) -> Tensor:
    import torch

    from attnctl.pictures import load_picture

    size = arguments.size or model.default_size
    model.latent_size(size)  # refuse a size that does not fit before the picture is brought to it
    loaded = load_picture(arguments.image, size, fit=arguments.fit)
    for text in loaded.notes:
        say("note", f"{arguments.image}: {text}")
    return torch.from_numpy(loaded.pixels)


def _scores(metrics: list[Any], found: SourceInversion, pixels: Tensor) -> dict[str, float]:
    """Judge the reconstruction against the picture; what is not installed is said and left out."""
    from attnctl.metric import Sample, UnavailableError

    assert found.reconstruction is not None  # `EditSession.invert` always measures
    truth = pixels.float().cpu() / 2 + 0.5
    sample = Sample(found.reconstruction, found.report.prompt, truth, found.report.prompt, truth=truth)
    scores: dict[str, float] = {}
    for metric in metrics:
        try:
            (score,) = metric.score([sample])
        except UnavailableError as error:
            say("note", error.message)
            continue
        if score.value is None:
            say("note", f"{metric.column}: {score.reason}")
        else:
            scores[metric.card().id] = score.value
    return scores


def _write(arguments: Namespace, found: SourceInversion) -> None:
    if arguments.out is None or found.reconstruction is None:
        return
    from attnctl.pictures import save_png, to_image

    save_png(to_image(found.reconstruction), arguments.out)


def _data(found: SourceInversion, scores: dict[str, float], folder: str | None) -> dict[str, Any]:
    report = found.report
    return {
        "inversion": report.name,
        "settings": report.settings,
        "prompt": report.prompt,
        "psnr": report.psnr,
        "vae_psnr": report.vae_psnr,
        "scores": scores,
        "rows": found.rows,
        "seconds": found.seconds,
        "cached": found.cached,
        "cache": folder,
    }


def _show(data: dict[str, Any]) -> None:
    settings = " ".join(f"{name}={shown(value)}" for name, value in data["settings"].items())
    rows = ", ".join(f"{stage} {n}" for stage, n in data["rows"].items())
    seconds = ", ".join(f"{stage} {s:.1f} s" for stage, s in data["seconds"].items())
    about = [
        ("inversion", f"{data['inversion']} {settings}".strip()),
        ("prompt", quoted(data["prompt"], 90) if data["prompt"] else "none"),
        ("PSNR", f"{data['psnr']:.2f} dB; the autoencoder alone: {data['vae_psnr']:.2f} dB"),
        *((column, f"{value:.4f}") for column, value in data["scores"].items()),
        ("denoiser rows", rows),
        ("time", seconds + ("; kept from an earlier run" if data["cached"] else "")),
        ("kept in", data["cache"] or "nowhere"),
    ]
    show(facts(about))


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
