"""CLIP encoders: any of open_clip's models, or one of transformers', from the hub's cache or from files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnctl.errors import unknown
from attnctl.files import read_json
from attnctl.metric import UnavailableError
from attnctl_evaluation.metrics.common import imported, versions, weights_hash

if TYPE_CHECKING:
    from torch import Tensor

MICRO = "micro"
"""Name of the small CLIP of the drawn world, looked for in `MICRO_FOLDER`."""

MICRO_FOLDER = Path(__file__).parent.parent / "weights" / "clip"
WORDS = "attnctl_vocabulary"
"""Key of ``open_clip_config.json`` with the words of a model that reads whole words."""

KEPT = 512
"""Embeddings that an encoder keeps: sources and prompts come again with every method."""


class WordTokenizer:
    """Turns text into numbers of whole words, for a model of few words.

    Args:
        words: The words, in the order of their numbers from 1 on; 0 pads.
        length: Numbers per text; longer texts are cut.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.numbers = {word: n for n, word in enumerate(words, 1)}
        self.length, self.unknown, self.start, self.end = length, len(words) + 1, len(words) + 2, len(words) + 3

    @property
    def size(self) -> int:
        """Size of the table of embeddings; the end has the largest number, at which open_clip reads a text."""
        return self.end + 1

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the numbers (n, length), int64."""
        import torch

        found = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in enumerate(texts):
            words = [self.numbers.get(word, self.unknown) for word in text.lower().replace(",", " ").split()]
            line = [self.start, *words[: self.length - 2], self.end]
            found[row, : len(line)] = torch.tensor(line)
        return found


class Encoder(ABC):
    """A CLIP model. Pictures and texts are encoded one by one, so that a batch never changes an embedding.

    Attributes:
        model: Which network, exactly.
        weights: Where its weights come from.
        sha256: Hash of its parameters.
        preprocessing: What happens to a picture.
        packages: Versions of what computes.
    """

    model: str
    weights: str
    sha256: str
    preprocessing: str
    packages: Mapping[str, str]

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()

    def image(self, picture: Tensor) -> Tensor:
        """Encode a picture.

        Args:
            picture: (3, H, W) in [0, 1]; it is rounded to 8 bits, as pictures in files are.

        Returns:
            Unit vector (D,), float64, on the CPU.
        """
        import torch

        levels = (picture.detach().cpu().float() * 255 + 0.5).clamp(0, 255).to(torch.uint8)
        key = hashlib.sha256(f"{tuple(levels.shape)}".encode() + levels.numpy().tobytes()).digest()
        return self._once(("image", key), lambda: self._image(levels))

    def text(self, text: str) -> Tensor:
        """Encode a text; returns a unit vector (D,), float64, on the CPU."""
        return self._once(("text", text.encode("utf-8", "surrogatepass")), lambda: self._text(text))

    def _once(self, key: tuple[str, bytes], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            import torch

            with torch.no_grad():
                found = make().detach().cpu().double().flatten()
            self._kept[key] = found / found.norm().clamp_min(1e-12)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @abstractmethod
    def _image(self, levels: Tensor) -> Tensor:
        """Encode levels (3, H, W), uint8; returns (1, D) or (D,), of any length."""

    @abstractmethod
    def _text(self, text: str) -> Tensor:
        """Encode a text; returns (1, D) or (D,), of any length."""


def encoder(engine: str, model: str, pretrained: str, download: bool, device: str) -> Encoder:
    """Return an encoder; the same one for the same arguments.

    Args:
        engine: ``open_clip`` or ``transformers``.
        model: For open_clip one of its names, ``hf-hub:OWNER/NAME``, a folder with open_clip_config.json, or ``micro``;
            for transformers a hub id or a folder.
        pretrained: For open_clip's names: one of its tags, or a file with weights.
        download: Whether the hub may be asked for what is not on this machine.
        device: Where it computes.

    Raises:
        UnavailableError: A package or the weights are missing, or do not fit.
    """
    return _encoder(engine, model, pretrained, download, device)


@lru_cache(maxsize=3)
def _encoder(engine: str, model: str, pretrained: str, download: bool, device: str) -> Encoder:
    from attnctl.compat import guard_torchvision

    guard_torchvision()
    if engine == "transformers":
        return _TransformersEncoder(model, download, device)
    return _OpenClipEncoder(model, pretrained, download, device)


class _OpenClipEncoder(Encoder):
    def __init__(self, model: str, pretrained: str, download: bool, device: str) -> None:
        super().__init__()

        def load() -> Any:
            import open_clip

            return open_clip

        open_clip = imported(load, "open_clip_torch", "CLIP")
        name, tag, folder, self.weights = _open_clip_source(open_clip, model, pretrained, download)
        try:
            self._net, _, self._prepare = open_clip.create_model_and_transforms(
                name, pretrained=tag or None, device=device, precision="fp32", require_pretrained=True
            )
            self._tokens = _tokenizer(open_clip, name, folder)
        except Exception as error:  # open_clip, the hub and torch raise many kinds
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnavailableError(
                f"CLIP: {model} cannot be loaded: {first}", hint="check model and weights"
            ) from error
        self._net.requires_grad_(False).eval()
        self._device = device
        self.model = f"open_clip {folder.name if folder else name}"
        self.sha256 = weights_hash(self._net)
        steps = " ".join(" ".join(str(step).split()) for step in self._prepare.transforms if not callable_name(step))
        self.preprocessing = f"8-bit RGB; {steps}"
        self.packages = versions("torch", "open_clip_torch", "torchvision", "pillow")

    def _image(self, levels: Tensor) -> Tensor:
        from PIL import Image

        picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
        found: Tensor = self._net.encode_image(self._prepare(picture)[None].to(self._device))
        return found

    def _text(self, text: str) -> Tensor:
        found: Tensor = self._net.encode_text(self._tokens([text]).to(self._device))
        return found


def callable_name(step: object) -> str:
    """Return the name of a transform that is a plain function, whose text would hold an address in memory."""
    return str(getattr(step, "__name__", ""))


def _tokenizer(open_clip: Any, name: str, folder: Path | None) -> Any:
    if folder is not None:
        config = read_json(folder / "open_clip_config.json")
        if WORDS in config:
            return WordTokenizer(config[WORDS], config["model_cfg"]["text_cfg"]["context_length"])
    return open_clip.get_tokenizer(name)


def _open_clip_source(open_clip: Any, model: str, pretrained: str, download: bool) -> tuple[str, str, Path | None, str]:
    """Return open_clip's name, its tag or file, the folder if the model is one, and what to call the weights.

    Raises:
        UnavailableError: They are not on this machine, and may not be fetched.
        InputError: open_clip knows no such model or tag.
    """
    if model == MICRO and not (MICRO_FOLDER / "open_clip_config.json").is_file():
        raise UnavailableError(
            "the small CLIP of the drawn world is not in this installation",
            hint="it is trained with tools/train_clip; name another with --set clip-score.model=NAME",
        )
    folder = MICRO_FOLDER if model == MICRO else Path(model).expanduser()
    if (folder / "open_clip_config.json").is_file():
        return f"local-dir:{folder}", "", folder, f"folder {folder.name}"
    if model.startswith("hf-hub:"):
        _check_cached(model.removeprefix("hf-hub:"), download)
        return model, "", None, f"hub {model.removeprefix('hf-hub:')}"
    if model not in open_clip.list_models():
        raise unknown("CLIP model", model, [MICRO, *open_clip.list_models()])
    file = Path(pretrained).expanduser()
    if file.is_file():
        return model, str(file), None, f"file {file.name}"
    config = open_clip.pretrained.get_pretrained_cfg(model, pretrained)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise unknown(f"file or tag of weights for {model}", pretrained, tags)
    hub = str(config.get("hf_hub", "")).rpartition("/")[0]
    if hub:
        _check_cached(hub, download)
    elif not download:
        raise UnavailableError(f"CLIP: the weights {model} {pretrained} must be fetched from the net", hint=_HINT)
    return model, pretrained, None, f"{pretrained} (hub {hub})" if hub else pretrained


_HINT = "allow the download with --set clip-score.download=true, or name weights on this machine"


def _check_cached(hub: str, download: bool) -> None:
    from attnctl.families.hubcache import hub_snapshot

    snapshot = hub_snapshot(hub)
    kept = snapshot is not None and any(p.suffix in {".safetensors", ".bin", ".pt"} for p in snapshot.iterdir())
    if not kept and not download:
        raise UnavailableError(f"CLIP needs the weights of {hub}, which are not on this machine", hint=_HINT)


class _TransformersEncoder(Encoder):
    """CLIP of transformers, preprocessing as by its Pillow processor, as torchmetrics' CLIPScore has used it."""

    def __init__(self, model: str, download: bool, device: str) -> None:
        super().__init__()
        from attnctl.families.hubcache import hub_snapshot

        folder = Path(model).expanduser() if Path(model).expanduser().is_dir() else hub_snapshot(model)
        if folder is None and not download:
            raise UnavailableError(f"CLIP needs the weights of {model}, which are not on this machine", hint=_HINT)
        from transformers import AutoTokenizer, CLIPModel

        try:
            self._net = CLIPModel.from_pretrained(folder or model, use_safetensors=True).float()
            self._tokens = AutoTokenizer.from_pretrained(folder or model)
            self._config = _processor_config(folder or hub_snapshot(model))
        except Exception as error:  # transformers and the hub raise many kinds
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnavailableError(f"CLIP: {model} cannot be loaded: {first}", hint="check the model's name") from error
        self._net.requires_grad_(False).eval().to(device)
        self._device = device
        self.model = f"transformers CLIPModel {folder.name if folder and Path(model).is_dir() else model}"
        self.weights = f"folder {folder.name}" if folder else f"hub {model}"
        self.sha256 = weights_hash(self._net)
        self.preprocessing = (
            f"8-bit RGB; Pillow bicubic to a shorter side of {self._config['size']}, central "
            f"{self._config['crop']} x {self._config['crop']}, / 255, minus mean, over standard deviation"
        )
        self.packages = versions("torch", "transformers", "pillow")

    def _image(self, levels: Tensor) -> Tensor:
        import torch
        from PIL import Image

        picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
        side, crop = self._config["size"], self._config["crop"]
        scale = side / min(picture.size)
        width, height = (max(side, int(length * scale)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - crop) // 2, (height - crop) // 2
        picture = picture.crop((left, top, left + crop, top + crop))
        import numpy as np

        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(self._config[k])[:, None, None] for k in ("mean", "std"))
        return _features(self._net.get_image_features(pixel_values=((pixels - mean) / std)[None].to(self._device)))

    def _text(self, text: str) -> Tensor:
        length = self._net.config.text_config.max_position_embeddings
        tokens = self._tokens([text], padding=True, truncation=True, max_length=length, return_tensors="pt")
        given = {k: tokens[k].to(self._device) for k in ("input_ids", "attention_mask")}
        return _features(self._net.get_text_features(**given))


def _features(found: Any) -> Tensor:
    """Return the projected embedding, which newer transformers wrap."""
    tensor: Tensor = getattr(found, "pooler_output", found)
    return tensor


def _processor_config(folder: Path | None) -> dict[str, Any]:
    """Read a CLIP processor's numbers.

    Raises:
        FileNotFoundError: The model has none.
    """
    if folder is None:
        raise FileNotFoundError("no preprocessor_config.json")
    found = read_json(folder / "preprocessor_config.json")
    size, crop = found["size"], found["crop_size"]
    return {
        "size": size["shortest_edge"] if isinstance(size, dict) else size,
        "crop": crop["height"] if isinstance(crop, dict) else crop,
        "mean": found["image_mean"],
        "std": found["image_std"],
    }


Engine = Literal["open_clip", "transformers"]
