"""Find and load a model: the embedded one, a hub id, a local folder, or a single ``.safetensors`` file."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl.compat import guard_torchvision
from attnctl.errors import InputError, ModelError, unknown

if TYPE_CHECKING:
    import torch

    from attnctl.model import Model

EMBEDDED = "micro"
"""The name of the model that is in the wheel, and the default."""

FAMILIES = {
    "StableDiffusionPipeline": "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
}
DTYPES = ("float32", "bfloat16", "float16")


def embedded_folder() -> Path:
    """Return the folder of the embedded model."""
    return Path(__file__).parent / "models" / EMBEDDED


def pick_device(name: str | None) -> torch.device:
    """Return the device to run on; None picks CUDA, then Apple's MPS, then the CPU.

    Raises:
        InputError: The device does not exist here.
    """
    import torch

    mps = torch.backends.mps.is_available()
    have = ["cpu", *(["mps"] if mps else []), *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, have) from None
    if str(device) not in have and not (device.type == "cuda" and device.index is None and torch.cuda.is_available()):
        raise unknown("device", name, have)
    return device


def load_model(
    name: str = EMBEDDED,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    config: str | None = None,
) -> Model:
    """Load a model; safetensors only, no remote code.

    Args:
        name: ``micro``, a hub id ``owner/name``, a folder in diffusers' layout, or a ``.safetensors`` file.
        revision: Hub branch, tag or commit.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None means float32 on the CPU, float16 elsewhere.
        device: ``cpu``, ``cuda``, ``cuda:0``, ``mps``; None picks the best there is.
        config: Folder or hub id with the configuration of a single file, where it cannot be told from the weights.

    Raises:
        InputError: A name, dtype or device that does not exist.
        ModelError: The model cannot be loaded or is of an unsupported family.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    location, single_file = locate(name)
    family = ""  # of hub models it is told by a file that has to be downloaded first
    if location is not None:
        family = inspect_file(location, name) if single_file else inspect_folder(location, name)
    import torch

    place = pick_device(device)
    kind = getattr(torch, dtype) if dtype else (torch.float32 if place.type == "cpu" else torch.float16)
    pipe = _load_pipeline(name, location, single_file, family, revision, kind, config)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(place)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if part is not None:
            part.requires_grad_(False).eval()
    from attnctl.model import Model, check_supported

    folder = location if location is not None and not single_file else None
    return Model(pipe, name, revision, folder, check_supported(pipe, name))


def load_tokenizer(name: str = EMBEDDED, *, revision: str | None = None) -> Any:
    """Load a model's tokenizer alone, which needs no torch. Arguments and errors are those of `load_model`."""
    location, single_file = locate(name)
    if single_file:
        return load_model(name).pipe.tokenizer
    if location is not None and not (location / "tokenizer").is_dir():
        raise ModelError(f"{name} has no tokenizer/", hint="name a folder in diffusers' layout")
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(location or name, subfolder="tokenizer", revision=revision or "main")
    except Exception as error:  # OSError, ValueError, KeyError, hub errors, ...
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the tokenizer of {name} cannot be loaded: {first[0]}", hint=_load_hint(location, False)
        ) from error


def locate(name: str) -> tuple[Path | None, bool]:
    """Return (local path or None for a hub id, whether it is a single file).

    Raises:
        InputError: The name is neither the embedded model, nor a path that exists, nor shaped like a hub id.
    """
    if name == EMBEDDED:
        return embedded_folder(), False
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path, False
    if path.suffix in {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}:
        if path.suffix != ".safetensors":
            raise ModelError(
                f"{name} is a pickled checkpoint, which can run code when it is opened",
                hint="convert it to .safetensors; only those are loaded",
            )
        if not path.is_file():
            raise InputError(f"there is no file {name}", hint="check the path")
        return path, True
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")):
        return None, False
    alike = difflib.get_close_matches(name.lower(), [EMBEDDED])
    raise InputError(
        f"unknown model {name!r}: known are {EMBEDDED}, and any folder in diffusers' layout, .safetensors "
        "file or hub name (owner/name)",
        hint=f"did you mean {EMBEDDED!r}?" if alike else "there is no such folder or file here; check the path",
    )


def inspect_folder(folder: Path, name: str) -> str:
    """Check a folder in diffusers' layout before anything heavy is imported; return the pipeline class to load.

    Raises:
        ModelError: No or broken ``model_index.json``, an unsupported family, a missing part, or pickled weights only.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{name} has no model_index.json", hint="name a folder in diffusers' layout")
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        kind = str(parts["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index} cannot be read: {error}", hint="download the model again") from error
    if kind not in FAMILIES:
        raise ModelError(
            f"{name} is a {kind}, a family that is not supported",
            hint=f"supported are {', '.join(sorted(FAMILIES))}",
        )
    second = FAMILIES[kind] == "StableDiffusionXLPipeline"
    for part in ("unet", "vae", "text_encoder", *(("text_encoder_2",) if second else ())):
        if not (folder / part / "config.json").is_file():
            raise ModelError(f"{name} has no {part}/config.json", hint="download the whole model, not only weights")
        if not list((folder / part).glob("*.safetensors")):
            pickled = sorted(p.name for p in (folder / part).iterdir() if p.suffix in {".bin", ".pt", ".ckpt", ".pth"})
            found = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
            raise ModelError(
                f"{name} has {found} in {part}/", hint="get the .safetensors files; pickles are not loaded"
            )
    for part in ("tokenizer", *(("tokenizer_2",) if second else ())):  # loaders make up an empty one
        if not any((folder / part / file).is_file() for file in ("vocab.json", "tokenizer.json")):
            raise ModelError(f"{name} has no vocabulary in {part}/", hint="download the whole model, not only weights")
    return FAMILIES[kind]


def inspect_file(path: Path, name: str) -> str:
    """Look at the names of a single file's tensors, without loading them; return the pipeline class to load.

    Raises:
        ModelError: The file is damaged, or holds no denoiser: a LoRA, an adapter, or a part of a model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            keys = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name} cannot be read: {error}", hint="the file may be damaged; download it again"
        ) from error
    if not any(key.startswith("model.diffusion_model.") for key in keys):
        raise ModelError(
            f"{name} holds no whole Stable Diffusion model: none of its {len(keys)} tensors belongs to a denoiser",
            hint="name a checkpoint, not a LoRA, an adapter or a part of a model",
        )
    xl = any(key.startswith("conditioner.embedders.1.") for key in keys)
    return "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"


def _load_pipeline(
    name: str,
    location: Path | None,
    single_file: bool,
    family: str,
    revision: str | None,
    dtype: Any,
    config: str | None,
) -> Any:
    guard_torchvision()
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype}
    try:
        family = family or _hub_family(name, revision)
        pipeline = getattr(diffusers, family)
        if family == "StableDiffusionPipeline":
            options["safety_checker"] = None
        if single_file:
            return pipeline.from_single_file(str(location), **options, **({"config": config} if config else {}))
        if family == "StableDiffusionPipeline":
            options["requires_safety_checker"] = False
        if location is not None and all(".fp16." in p.name for p in (location / "unet").glob("*.safetensors")):
            options["variant"] = "fp16"
        return pipeline.from_pretrained(location or name, revision=revision, use_safetensors=True, **options)
    except ModelError:
        raise
    except Exception as error:  # loaders raise OSError, ValueError, KeyError, SafetensorError, hub errors, ...
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{name} cannot be loaded: {first[0]}", hint=_load_hint(location, single_file)) from error


def _hub_family(name: str, revision: str | None) -> str:
    from diffusers import DiffusionPipeline

    kind = str(DiffusionPipeline.load_config(name, revision=revision).get("_class_name"))
    if kind not in FAMILIES:
        raise ModelError(
            f"{name} is a {kind}, a family that is not supported",
            hint=f"supported are {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[kind]


def _load_hint(location: Path | None, single_file: bool) -> str:
    if single_file:
        return "name the model's configuration with --config FOLDER if it cannot be told from the file"
    if location is None:
        return f"check the name and the network, or use a local folder, or the embedded model {EMBEDDED!r}"
    return "the files may be damaged; download the model again"
