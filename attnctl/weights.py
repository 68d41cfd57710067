"""A model folder's networks: which files are read, what their configuration may ask for, what must be in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attnctl.errors import InputError, ModelError
from attnctl.files import read_json

SINGLE = ("diffusion_pytorch_model", "model")
"""What the libraries call a part's weights."""

LAYERS, WIDTH, SIZE, STEPS, ITEMS = 512, 65_536, 1_000_000, 100_000, 4096
"""Budgets of a configuration, far above any model there is: depth, width, any other number, training steps, length of a
list."""

PRECISE = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""Variants by the type that is asked for."""


def variants(folder: Path) -> dict[str, bool]:
    """Return the variants of weights in a part's folder, the plain one as ``""``, and whether each is in shards."""
    found: dict[str, bool] = {}
    for path in sorted(folder.iterdir()):
        for base in SINGLE:
            single = re.fullmatch(rf"{base}(?:\.([A-Za-z_][\w-]*))?\.safetensors", path.name)
            shards = re.fullmatch(rf"{base}\.safetensors\.index(?:\.([\w-]+))?\.json", path.name)
            if single and not re.search(r"-\d{5}-of-\d{5}$", single[1] or ""):
                found[single[1] or ""] = False
            elif shards:
                found.setdefault(shards[1] or "", True)
    return found


def pick_variant(folder: Path, name: str, dtype: str) -> str:
    """Return the variant to read: the plain one, else the one in the wanted type, else fp16, bf16, or the first.

    Raises:
        ModelError: The folder's safetensors are named as no library names them.
    """
    found = variants(folder)
    for variant in ("", PRECISE.get(dtype, ""), "fp16", "bf16", *sorted(found)):
        if variant in found:
            return variant
    files = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))[:4])
    raise ModelError(
        f"{name} has weights in {folder.name}/ that no loader looks for: {files}",
        hint=f"expected {SINGLE[0]}.safetensors or {SINGLE[1]}.safetensors, with .fp16 or another variant before the "
        "ending, and for shards their .index.json",
    )


def load_networks(
    folder: Path, name: str, index: Mapping[str, Any], parts: tuple[str, ...], dtype: Any
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Load parts of a model, each from the variant that it has.

    Args:
        folder: The model's folder.
        name: What the user called it.
        index: Its ``model_index.json``.
        parts: The parts.
        dtype: torch type to load in.

    Returns:
        The networks by part, and a note for each variant that was taken in place of plain weights.

    Raises:
        ModelError: Tensors are missing, are too many, or have other shapes than the configuration says.
    """
    import diffusers
    import transformers
    from transformers.utils import logging

    libraries = {"diffusers": diffusers, "transformers": transformers}
    networks, taken = {}, {}
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it prints a table of what does not fit; here that is an error
    try:
        for part in parts:
            library, kind = (*index.get(part, ()), None, None)[:2]
            if library not in libraries or not hasattr(libraries[library], str(kind)):
                raise ModelError(
                    f"{name} has a {part} of class {kind} of {library}, which is not loaded",
                    hint="only classes of diffusers and transformers are; no code comes with a model",
                )
            variant = taken[part] = pick_variant(folder / part, name, str(dtype).removeprefix("torch."))
            options = {"variant": variant or None, "use_safetensors": True, "output_loading_info": True}
            try:
                networks[part], report = getattr(libraries[library], kind).from_pretrained(
                    str(folder), subfolder=part, dtype=dtype, **options
                )
            except (RuntimeError, ValueError) as error:
                if "size" in str(error) or "shape" in str(error):
                    raise _unfitting(name, part, folder, error) from error
                raise
            _check_report(report, name, part)
    finally:
        logging.set_verbosity(level)
    notes = tuple(f"{name}: {part} is loaded from its {v} weights" for part, v in taken.items() if v)
    return networks, notes


def _check_report(report: Mapping[str, Any], name: str, part: str) -> None:
    for what, key in (("lacks", "missing_keys"), ("has other shapes for", "mismatched_keys")):
        _refuse(name, part, what, [str(k[0] if isinstance(k, tuple) else k) for k in report.get(key) or ()])
    _refuse(name, part, "has no place for", [str(k) for k in report.get("unexpected_keys") or ()])


def _refuse(name: str, part: str, what: str, keys: list[str]) -> None:
    keys = sorted(k for k in keys if not k.endswith("position_ids"))  # a buffer that older versions saved
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise ModelError(
            f"{name} {what} {len(keys)} tensors in {part}/: {', '.join(keys[:3])}{more}",
            hint="weights and config.json are of different models, or damaged; download the model again",
        )


def _unfitting(name: str, part: str, folder: Path, error: Exception) -> ModelError:
    said = str(error).strip().splitlines()[0]
    named = re.search(r"because (\S+) expected shape (.*?), but got (.*?)\. ", said + " ")
    what = f": {named[1]} has {named[3]}, expected {named[2]}" if named else ""
    return ModelError(
        f"{name} has tensors of other shapes in {part}/ than its config.json says{what}",
        hint="weights and config.json are of different models, or damaged; download the model again",
    )


def check_complete(pipe: Any, name: str) -> None:
    """Refuse a pipeline with parameters that no file had: loaders leave them without numbers.

    Raises:
        ModelError: There are such.
    """
    import torch

    for part, network in pipe.components.items():
        if isinstance(network, torch.nn.Module):
            _refuse(name, part, "lacks", [key for key, value in network.state_dict().items() if value.is_meta])


def check_budget(folder: Path, name: str, parts: tuple[str, ...]) -> None:
    """Refuse configurations that ask for more than any model has, before something of that size is built.

    Raises:
        ModelError: A number is above its budget, or a configuration cannot be read.
    """
    for path in (*(folder / part / "config.json" for part in parts), folder / "scheduler" / "scheduler_config.json"):
        if not path.is_file():
            continue
        where = f"{name} in {path.relative_to(folder)}"
        try:
            config = read_json(path)
            numbers = list(_walk(config))
        except (InputError, RecursionError) as error:
            raise ModelError(f"{where} cannot be read: {error}", hint="download it again") from error
        if not isinstance(config, dict):
            raise ModelError(f"{where} is no table of settings", hint="download the model again")
        for key, number in numbers:
            budget = _budget(key, isinstance(number, list))
            asked = len(number) if isinstance(number, list) else number
            if asked > budget:
                raise ModelError(
                    f"{where} asks for {key} = {asked}, more than the {budget} that any model may have",
                    hint="the file is damaged, or not what it says; nothing was built",
                )


def _budget(key: str, is_list: bool) -> int:
    """How large a setting may be, or how long if it is a list."""
    if key in ("num_train_timesteps", "trained_betas"):
        return STEPS
    if is_list:
        return ITEMS
    if "layers" in key:
        return LAYERS
    wide = any(word in key for word in ("size", "dim", "channels", "heads")) and key != "vocab_size"
    return WIDTH if wide else SIZE


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for inner, held in value.items():
            yield from _walk(held, str(inner))
    elif isinstance(value, list):
        yield key, value
        for held in value:
            yield from _walk(held, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, abs(value)
