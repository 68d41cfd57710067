"""Edits of joint attention against reference numbers that were made with explicit maps, whole runs long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl.attend import Attend
from attnctl.controller import Controller
from attnctl.engine.operation import Bound
from attnctl.sites import Where
from attnctl.steps import When
from attnctl.testing.conformance import distance

IMAGE = {"image": "source"}
FULL = Attend("source", "source", to="image")
WORDS = Attend(to="image", values="text")
BLOCK = Attend("source", "source", to="image", values="image") + WORDS
MASS = Attend("source", "source", to="image", keys="image", mass=True) + WORDS
SPLICE = Attend("source", "source", to="image", keys="image") | Attend(to="image", keys="text")


def load(root: Path, folder: str, model: str, case: str) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """The transformer, what the case says, and its tensors; skips where there is no ../shared."""
    import diffusers
    from safetensors.torch import load_file

    base = root.parent / "shared" / folder
    if not (base / "cases" / case).is_dir():
        pytest.skip(f"no case {case} in {base}: nothing to compare with")
    inputs = json.loads((base / "cases" / case / "inputs.json").read_text(encoding="utf-8"))
    kind = diffusers.FluxTransformer2DModel if "flux" in f"{folder}{model}" else diffusers.SD3Transformer2DModel
    transformer = kind.from_pretrained(base / model / "transformer", torch_dtype=torch.float32)
    return transformer.requires_grad_(False), inputs, load_file(base / "cases" / case / "io.safetensors")


def image_ids(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()


Q, SHARE = Attend(IMAGE, IMAGE), Attend(k=IMAGE, v=IMAGE)
EVERY = Where(kind="joint")
CASES: list[tuple[str, str, Any, Where, tuple[int, ...], tuple[str, ...]]] = [
    ("model_sd3", "fpe_mmdit_sd3_whole_map", Attend("source", "source"), EVERY, (0, 6), ("cond",)),
    ("model_sd3", "fpe_mmdit_sd3_i2i_copy", BLOCK, EVERY, (0, 6), ("cond",)),
    ("model_sd3", "fpe_mmdit_sd3_i2i_mass", MASS, EVERY, (0, 6), ("cond",)),
    ("model_flux", "fpe_mmdit_flux_i2i_mass", MASS, EVERY, (0, 6), ("cond",)),
    ("model_sd3", "imageqk_sd3_cond", Q, EVERY, (0, 6), ("cond",)),
    ("model_sd35", "imageqk_sd35_joint", Q, EVERY, (0, 4), ("uncond", "cond")),
    ("model_sd35", "imageqk_sd35_joint_and_attn2", Q, Where(attends=("image", "image")), (0, 4), ("uncond", "cond")),
    ("model_sd3", "consistedit_sd3_nomask", Q, EVERY, (0, 4), ("uncond", "cond")),
    ("model_flux", "consistedit_flux_nomask", Q, Where(kind="joint", block="single"), (0, 3), ("cond",)),
    ("model_flux", "stableflow_flux_generated", SHARE, Where(kind="joint", layers=(0, 2, 4, 6, 7)), (0, 8), ("cond",)),
    ("model_flux", "freeflux_nonrigid_flux", SHARE, Where(kind="joint", layers=(0, 2, 4, 7)), (2, 8), ("cond",)),
]


@pytest.mark.parametrize(("model", "case", "expression", "where", "window", "passes"), CASES, ids=[c[1] for c in CASES])
def test_published_edits(
    root: Path, joint: Any, model: str, case: str, expression: Any, where: Where, window: Any, passes: Any
) -> None:
    transformer, inputs, tensors = load(root, "golden2", model, case)
    lanes, packed = inputs["row_order"], "flux" in model
    names = lanes if packed else [*["null"] * len(lanes), *lanes]
    text = {
        "encoder_hidden_states": torch.stack([tensors[f"in.{name}.embeds"] for name in names]),
        "pooled_projections": torch.stack([tensors[f"in.{name}.pooled"] for name in names]),
    }
    if packed:
        text |= {"guidance": torch.full((len(lanes),), inputs["hyper"]["guidance"]), "txt_ids": torch.zeros(12, 3)}
        text["img_ids"] = image_ids(8, 8)
    x = tensors["in.x_T"].repeat(len(lanes), *[1] * (tensors["in.x_T"].ndim - 1))
    when = When(steps=frozenset(range(*window)))
    bounds: list[Bound] = [
        joint.bind(transformer, Controller("edit", where, when, passes, attend=expression), lane, 8, (16, 16))
        for lane in ("edit[0]", "edit[1]")[: len(lanes) - 1]
    ]
    out = joint.sample(transformer, x, text, torch.tensor(inputs["sigmas"]), inputs["hyper"]["guidance"], bounds)
    assert max(distance(a, b) for a, b in zip(out, tensors["out.final"], strict=True)) < 1e-6
    for bound, row in zip(bounds, out[1:], strict=True):
        assert bound.differs
        assert len(bound.acted) == bound.expected
        assert min(distance(row, plain) for plain in tensors["plain.final"]) > 1e-2


FORMS = {"image_qk": Q, "full": FULL, "block": BLOCK, "block_mass": MASS, "splice": SPLICE}


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("form", FORMS)
def test_readings_of_one_edit_on_a_grid_that_is_not_square(root: Path, joint: Any, family: str, form: str) -> None:
    """And the source's row is what it is without an edit, bit for bit."""
    folder, case = f"golden-families/{family}", f"edit_{form}"
    transformer, _, made = load(root, folder, "model", case)
    _, inputs, plain = load(root, folder, "model", "plain_two_prompt")
    call = load(root, folder, "model", "unit_denoiser")[2]
    sigmas = load(root, folder, "model", "unit_scheduler")[2]["out.sigmas"]
    names = {"encoder_hidden_states", "pooled_projections", "guidance", "img_ids", "txt_ids"}
    text = {name: call[f"in.step0.{name}"] for name in names if f"in.step0.{name}" in call}
    x = plain["in.x_T"].repeat(2, 1, 1, 1)
    x = pack(x) if family == "flux" else x
    when = When(steps=frozenset(range(4)))
    controller = Controller("edit", EVERY, when, attend=FORMS[form])
    bound = joint.bind(transformer, controller, "edit[0]", 8, (16, 24))
    guidance = inputs["guidance_scale"]
    out, untouched = (joint.sample(transformer, x, text, sigmas, guidance, bounds) for bounds in ([bound], []))
    assert torch.equal(out[0], untouched[0])
    expected, source = made["out.final"], plain["out.final"]
    expected, source = (pack(expected), pack(source)) if family == "flux" else (expected, source)
    assert distance(untouched, source) < 1e-5
    assert distance(out[1], expected[1]) < 2e-5
    assert distance(out[1], untouched[1]) > 0.2
    assert len(bound.acted) == bound.expected == 4 * len(bound.sites)


def pack(x: Tensor) -> Tensor:
    rows, channels, height, width = x.shape
    blocks = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(rows, height * width // 4, 4 * channels)
