"""Find and load a model: the embedded one, a hub id, a local folder, or a single ``.safetensors`` file."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl.compat import guard_torchvision
from attnctl.errors import InputError, ModelError, unknown
from attnctl.families.finding import family_of_class, family_of_file
from attnctl.files import read_json
from attnctl.weights import check_budget, check_complete, load_networks

if TYPE_CHECKING:
    import torch

    from attnctl.families.base import Family
    from attnctl.model import Model

EMBEDDED = "micro"
"""The name of the model that is in the wheel, and the default."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PipelineClass:
    """What a model is loaded with.

    Attributes:
        family: The family.
        pipeline: Name of diffusers' pipeline class.
    """

    family: type[Family]
    pipeline: str


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
    kind = None  # of hub models it is told by a file that has to be downloaded first
    if location is not None:
        kind = inspect_file(location, name) if single_file else inspect_folder(location, name)
    import torch

    place = pick_device(device)
    floats = getattr(torch, dtype) if dtype else (torch.float32 if place.type == "cpu" else torch.float16)
    pipe, notes = _load_pipeline(name, location, single_file, kind, revision, floats, config)
    check_complete(pipe, name)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(place)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    from attnctl.model import Model, check_supported

    folder = location if location is not None and not single_file else None
    return Model(pipe, name, revision, folder, check_supported(pipe, name), notes=notes)


def load_structure(
    name: str = EMBEDDED, *, revision: str | None = None, dtype: str | None = None, config: str | None = None
) -> Model:
    """Load a model's structure without reading weights: enough for its sites, its schedule, and to plan edits.

    Only a single file, whose configuration is told by its weights, is loaded whole. Arguments and errors are those of
    `load_model`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    location, single_file = locate(name)
    if single_file:
        return load_model(name, revision=revision, dtype=dtype, device="cpu", config=config)
    kind = None if location is None else inspect_folder(location, name)
    guard_torchvision()
    from attnctl.model import Model, check_supported

    _quieten()
    try:
        kind = kind or _hub_class(name, revision)
        pipe = _empty_pipeline(kind, str(location or name), revision)
    except ModelError:
        raise
    except Exception as error:  # loaders raise OSError, ValueError, KeyError, hub errors, ...
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{name} cannot be loaded: {first[0]}", hint=_load_hint(location, False)) from error
    return Model(pipe, name, revision, location, check_supported(pipe, name))


def _empty_pipeline(kind: PipelineClass, place: str, revision: str | None) -> Any:
    """Build a pipeline whose networks have shapes and no numbers; text encoders are left out."""
    import diffusers
    import torch
    import transformers

    pipeline = getattr(diffusers, kind.pipeline)
    index = pipeline.load_config(place, revision=revision)
    wanted = {n for n in inspect.signature(pipeline.__init__).parameters if n != "self"}
    parts: dict[str, Any] = {n: None for n in wanted if isinstance(index.get(n), list)}
    for part in (kind.family.denoiser_part, "vae"):
        built = getattr(diffusers, index[part][1])
        with torch.device("meta"):
            parts[part] = built.from_config(built.load_config(place, subfolder=part, revision=revision))
    for part in kind.family.tokenizers:
        if index.get(part, [None])[0] is not None:
            reader = getattr(transformers, index[part][1])
            parts[part] = reader.from_pretrained(place, subfolder=part, revision=revision or "main")
    scheduler = getattr(diffusers, index["scheduler"][1])
    parts["scheduler"] = scheduler.from_pretrained(place, subfolder="scheduler", revision=revision)
    settings = {n: index[n] for n in wanted if n in index and not isinstance(index[n], list)}
    return pipeline(**{**parts, **settings, **kind.family.load_options})


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


def inspect_folder(folder: Path, name: str) -> PipelineClass:
    """Check a folder in diffusers' layout before anything heavy is imported; return what to load it with.

    Raises:
        ModelError: No or broken ``model_index.json``, an unsupported family, a missing part, or pickled weights only.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"{name} has no model_index.json", hint="name a folder in diffusers' layout")
    try:
        parts = read_json(index)
        kind = str(parts["_class_name"])
    except (InputError, KeyError, TypeError) as error:
        raise ModelError(f"{index} cannot be read: {error}", hint="download the model again") from error
    family = family_of_class(kind, name)
    left_out = {part for part in family.optional if not (folder / part).is_dir()}
    for part in (part for part in family.parts if part not in left_out):
        if not (folder / part / "config.json").is_file():
            raise ModelError(f"{name} has no {part}/config.json", hint="download the whole model, not only weights")
        if not list((folder / part).glob("*.safetensors")):
            pickled = sorted(p.name for p in (folder / part).iterdir() if p.suffix in {".bin", ".pt", ".ckpt", ".pth"})
            found = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
            raise ModelError(
                f"{name} has {found} in {part}/", hint="get the .safetensors files; pickles are not loaded"
            )
    for part in (part for part in family.tokenizers if part not in left_out):  # loaders make up an empty one
        if not any((folder / part / file).is_file() for file in ("vocab.json", "tokenizer.json")):
            raise ModelError(f"{name} has no vocabulary in {part}/", hint="download the whole model, not only weights")
    check_budget(folder, name, tuple(part for part in family.parts if part not in left_out))
    return PipelineClass(family, family.pipelines[kind])


def inspect_file(path: Path, name: str) -> PipelineClass:
    """Look at the names of a single file's tensors, without loading them; return what to load it with.

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
    family = family_of_file(keys)
    if family is None:
        raise ModelError(
            f"{name} holds no whole model of a known family: none of its {len(keys)} tensors belongs to a denoiser",
            hint="name a checkpoint, not a LoRA, an adapter or a part of a model",
        )
    return PipelineClass(family, next(iter(family.pipelines.values())))


def _load_pipeline(
    name: str,
    location: Path | None,
    single_file: bool,
    kind: PipelineClass | None,
    revision: str | None,
    dtype: Any,
    config: str | None,
) -> tuple[Any, tuple[str, ...]]:
    """Return the pipeline, and what is to be said about it."""
    guard_torchvision()
    import diffusers

    _quieten()
    options: dict[str, Any] = {"dtype": dtype}
    try:
        kind = kind or _hub_class(name, revision)
        pipeline = getattr(diffusers, kind.pipeline)
        options |= kind.family.load_options
        if single_file:
            options.pop("requires_safety_checker", None)
            return pipeline.from_single_file(str(location), **options, **({"config": config} if config else {})), ()
        folder = location if location is not None else _download(pipeline, name, revision)
        left_out = [part for part in kind.family.optional if not (folder / part).is_dir()]
        options |= dict.fromkeys(left_out)
        index = read_json(folder / "model_index.json")
        wanted = tuple(part for part in kind.family.parts if part not in left_out)
        check_budget(folder, name, wanted)
        networks, notes = load_networks(folder, name, index, wanted, dtype)
        return pipeline.from_pretrained(folder, use_safetensors=True, **options, **networks), notes
    except ModelError:
        raise
    except Exception as error:  # loaders raise OSError, ValueError, KeyError, SafetensorError, hub errors, ...
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{name} cannot be loaded: {first[0]}", hint=_load_hint(location, single_file)) from error


def _download(pipeline: Any, name: str, revision: str | None) -> Path:
    """Return the folder of a hub model; plain weights if there are any, else those in half precision."""
    try:
        return Path(pipeline.download(name, revision=revision, use_safetensors=True))
    except ValueError:  # there are variants alone
        return Path(pipeline.download(name, revision=revision, use_safetensors=True, variant="fp16"))


def _quieten() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _hub_class(name: str, revision: str | None) -> PipelineClass:
    from diffusers import DiffusionPipeline

    kind = str(DiffusionPipeline.load_config(name, revision=revision).get("_class_name"))
    family = family_of_class(kind, name)
    return PipelineClass(family, family.pipelines[kind])


def _load_hint(location: Path | None, single_file: bool) -> str:
    if single_file:
        return "name the model's configuration with --config FOLDER if it cannot be told from the file"
    if location is None:
        return f"check the name and the network, or use a local folder, or the embedded model {EMBEDDED!r}"
    return "the files may be damaged; download the model again"
