"""Trajectories kept on disk: the same picture, prompt, model and settings are inverted once.

A file is named by the SHA-256 of everything that its numbers depend on, so that it can never be stale: whatever
changes, another file is looked for. Its header holds a digest of what is in it, so that one changed bit is noticed. The
least recently used files go when the folder grows over its limit. Keeping is a convenience: no fault of it ends a run.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl import __version__
from attnctl.errors import AttnctlError, InputError
from attnctl.files import reason, sha256_of, sha256_of_file, shown, write_atomic
from attnctl.fingerprint import fingerprint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnctl.inversion import Inversion, InversionCall, Trajectory
    from attnctl.model import Model
    from attnctl.text import Text

LAYOUT = 3
"""Counts up when the layout of the files changes."""

LIMIT = 2 * 1024**3
"""Default bound on the size of all files together, in bytes."""

_HEADER = "attnctl"
_NOWHERE = Path(os.devnull) / "attnctl"
"""Where nothing can be kept."""

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError, MemoryError)
"""What a header that anyone could have written may raise."""

_SINGLE = ("latents", "noises", "offsets", "reconstruction")


def cache_folder() -> Path:
    """Return where trajectories are kept: ``$ATTNCTL_CACHE``, else the user's cache folder.

    A user without a home folder has none: what is then returned can neither be read nor written.
    """
    try:
        if value := os.environ.get("ATTNCTL_CACHE"):
            return Path(value).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attnctl" / "trajectories"
    except RuntimeError:  # there is no home folder
        return _NOWHERE


@dataclass(frozen=True, eq=False)
class Kept:
    """What was found on disk.

    Attributes:
        trajectory: The trajectory.
        reconstruction: Latents (1, C, h, w) of sampling it back without an edit, if that was done.
    """

    trajectory: Trajectory
    reconstruction: Tensor | None


@dataclass(frozen=True)
class Entry:
    """One file of the cache.

    Attributes:
        key: Its name without the suffix, 64 hexadecimal digits.
        size: Bytes.
        used: When it was last used, in seconds since 1970.
        inversion: The inversion's name; empty if the file is damaged.
        prompt: The text that it was conditioned on.
        steps: Number of sampling steps T.
    """

    key: str
    size: int
    used: float
    inversion: str = ""
    prompt: str = ""
    steps: int = 0


@dataclass
class TrajectoryCache:
    """A folder of trajectories.

    Attributes:
        folder: Where they lie; made when the first is written.
        limit: Bound on the size of all files together, in bytes.
    """

    folder: Path
    limit: int = LIMIT

    def get(self, key: str, device: torch.device | str = "cpu", call: InversionCall | None = None) -> Kept | None:
        """Return what is kept under a key, or None; a damaged file counts as none, and is taken away.

        So does one that can be read and does not fit: other bits than were kept, numbers that are none, or not as many
        latents of the shape that `call` wants.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = json.loads(file.metadata()[_HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            found = _unpack(header, tensors)
            _check(found, call)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, *_UNREADABLE):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def put(self, key: str, trajectory: Trajectory, reconstruction: Tensor | None, inversion: Inversion) -> str:
        """Keep a trajectory; say why it could not be kept, or nothing: a full disk must not end a run."""
        from safetensors.torch import save

        tensors = {name: getattr(trajectory, name) for name in _SINGLE[:-1]}
        tensors |= {"reconstruction": reconstruction}
        tensors |= {f"uncond.{i}.{n}": part for i, text in enumerate(trajectory.uncond) for n, part in text.items()}
        header = {
            "layout": LAYOUT,
            "inversion": inversion.name,
            "settings": inversion.config.model_dump(mode="json"),
            "prompt": trajectory.prompt,
            "start": trajectory.start,
            "denoiser_rows": trajectory.denoiser_rows,
            "info": trajectory.info,
            "steps": trajectory.latents.shape[0] - 1,
        }
        if self.folder == _NOWHERE:
            return "there is no home folder; set ATTNCTL_CACHE to a folder"
        try:
            kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items() if t is not None}
            header["digest"] = _seal(header, kept)
            data = save(kept, {_HEADER: json.dumps(header)})
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path(key), data)
        except AttnctlError as error:
            return error.message
        except (OSError, TypeError, ValueError) as error:
            return f"{shown(self.folder)}: {reason(error)}"
        self._shrink(keep=key)
        return ""

    def entries(self) -> list[Entry]:
        """Return all files, last used first."""
        return sorted((self._read(path) for path in self._files()), key=lambda e: (-e.used, e.key))

    def clear(self) -> int:
        """Take every file away and return how many there were.

        Raises:
            InputError: One cannot be taken away.
        """
        files = list(self._files())
        for path in files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"cannot remove {shown(path)}: {reason(error)}", hint="check the folder") from error
        return len(files)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _files(self) -> Iterator[Path]:
        """List the cache's own files; strangers' files in the folder are left alone."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if len(path.stem) == 64 and set(path.stem) <= set("0123456789abcdef"):
                yield path

    def _read(self, path: Path) -> Entry:
        from safetensors import SafetensorError, safe_open

        try:
            status = path.stat()
            size, used = status.st_size, status.st_mtime
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()[_HEADER])
            return Entry(path.stem, size, used, str(header["inversion"]), str(header["prompt"]), int(header["steps"]))
        except OSError:
            return Entry(path.stem, 0, 0.0)
        except (SafetensorError, *_UNREADABLE):
            return Entry(path.stem, size, used)

    def _shrink(self, keep: str) -> None:
        """Take the least recently used files away until the limit is kept; never the one just written."""
        sizes: dict[Path, tuple[float, int]] = {}
        for path in self._files():
            with contextlib.suppress(OSError):
                sizes[path] = (path.stat().st_mtime, path.stat().st_size)
        total = sum(size for _, size in sizes.values())
        for path in sorted(sizes, key=lambda p: sizes[p]):
            if total <= self.limit:
                return
            if path.stem != keep:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= sizes[path][1]


def trajectory_key(inversion: Inversion, call: InversionCall) -> str | None:
    """Return the name of an inversion's result: a digest of everything that its numbers depend on.

    That is the latents, the texts as they were encoded, the denoiser as it is in memory (`attnctl.fingerprint`) with
    its family's code and the pipeline's settings, the schedule with its code, guidance, seed, device, type and
    precision, the inversion with its code, version and settings, and the versions of attnctl, torch and diffusers.
    None if the denoiser cannot be described (hooks, replaced methods, offloading), or has image prompts.
    """
    import diffusers
    import torch

    from attnctl.runs.describing import describe_device

    model = _denoiser(call.model)
    if model is None:
        return None
    parts = {
        "layout": LAYOUT,
        "versions": [__version__, torch.__version__, diffusers.__version__],
        "model": model,
        "device": describe_device(call.model.device, call.model.dtype).model_dump(),
        "precision": [torch.get_float32_matmul_precision(), torch.is_autocast_enabled(call.model.device.type)],
        "inversion": [
            inversion.name,
            inversion.version,
            _code(type(inversion)),
            inversion.config.model_dump(mode="json"),
        ],
        "schedule": [call.grid.fingerprint(), _code(type(call.grid))],
        "latents": _digest(call.x0),
        "texts": [_text(call.text), _text(call.source), _text(call.uncond)],
        "guidance": call.guidance,
        "seed": call.seed,
    }
    return sha256_of(json.dumps(parts, sort_keys=True).encode())


def _denoiser(model: Model) -> list[Any] | None:
    """Describe what runs: the network, how its family calls it, and the settings that the family reads."""
    from torch.nn.modules import module as torch_module

    denoiser = model.denoiser
    if getattr(denoiser, "peft_config", None) or getattr(denoiser.config, "encoder_hid_dim_type", None):
        return None
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return None
    found = fingerprint(denoiser)
    if found is None:
        return None
    settings = {k: v for k, v in dict(model.pipe.config).items() if not isinstance(v, list | tuple) and k[0] != "_"}
    scale = getattr(model.pipe, "vae_scale_factor", None)
    kind = type(model.adapter)
    return [found, model.family, _code(kind), type(model.pipe).__name__, repr(sorted(settings.items())), scale]


def _code(kind: type) -> str | None:
    """Return the digest of the file that a class is in: plugins change without a new version."""
    try:
        return sha256_of_file(inspect.getfile(kind))
    except (OSError, TypeError):
        return None


def _digest(tensor: Tensor) -> str:
    import torch

    plain = tensor.detach().cpu().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return f"{plain.dtype} {tuple(plain.shape)} {sha256_of(data)}"


def _text(text: Text) -> dict[str, str]:
    return {name: _digest(part) for name, part in text.parts.items()}


def _unpack(header: dict[str, Any], tensors: dict[str, Tensor]) -> Kept:
    from attnctl.inversion import Trajectory

    if header["layout"] != LAYOUT:
        raise ValueError(f"layout {header['layout']}, expected {LAYOUT}")
    if header["digest"] != _seal(header, tensors):
        raise ValueError("other bits than were kept")
    texts: dict[int, dict[str, Tensor]] = {}
    for name, part in tensors.items():
        if name.startswith("uncond."):
            _, index, of = name.split(".", 2)
            texts.setdefault(int(index), {})[of] = part
    trajectory = Trajectory(
        tensors["latents"],
        header["prompt"],
        uncond=tuple(texts[i] for i in range(len(texts))),
        start=header["start"],
        noises=tensors.get("noises"),
        offsets=tensors.get("offsets"),
        denoiser_rows=header["denoiser_rows"],
        info=header["info"],
    )
    return Kept(trajectory, tensors.get("reconstruction"))


def _seal(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Digest a file's content: what its header says, and every tensor."""
    said = {name: value for name, value in header.items() if name != "digest"}
    parts = [said, {name: _digest(part) for name, part in tensors.items()}]
    return sha256_of(json.dumps(parts, sort_keys=True).encode())


def _check(kept: Kept, call: InversionCall | None) -> None:
    """Look whether what was kept fits itself and the run.

    Raises:
        ValueError: It does not.
    """
    import torch

    found, like = kept.trajectory, kept.trajectory.latents[:1]
    steps = found.latents.shape[0] - 1
    tensors = {"noises": found.noises, "offsets": found.offsets}
    fits = found.latents.ndim == 4 and steps >= 1 and 0 <= int(found.start) <= steps
    fits &= all(t is None or t.shape == (steps, *like.shape[1:]) for t in tensors.values())
    fits &= kept.reconstruction is None or kept.reconstruction.shape == like.shape
    fits &= len(found.uncond) in {0, 1, steps}
    if call is not None:
        fits &= like.shape == call.x0.shape and steps == len(call.grid.timesteps)
        wanted = call.uncond.parts
        fits &= all(n in wanted and p.shape == wanted[n].shape for text in found.uncond for n, p in text.items())
    numbers = [found.latents, kept.reconstruction, *tensors.values(), *(p for t in found.uncond for p in t.values())]
    if not fits or not all(t is None or bool(torch.isfinite(t).all()) for t in numbers):
        raise ValueError("a trajectory that does not fit")
