"""Pictures that the embedded model gave before the engine was taken apart: they must not change by a single bit.

`python tests/test_unchanged.py` records them anew; do that only for a change that is meant to change pictures, and say
so in the CHANGELOG. Other releases of torch, and processors with other vector instructions, round otherwise: there the
pictures may differ by a level or two of 255 here and there, and no more.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parent / "fixtures" / "unchanged"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SCENE = ["--source-prompt", "a photo of a red car on a road", "--prompt", "a photo of a blue car on a road"]
PHOTO = ["--image", str(FOLDER / "demo-source.png"), *SCENE, "--no-cache"]
RUNS = {
    "demo": ["--method", "fpe"],
    "generated": ["--method", "fpe,p2p,masactrl,none", *SCENE, "--steps", "8", "--seed", "3"],
    "euler": ["--method", "fpe", *SCENE, "--steps", "8", "--scheduler", "euler", "--guidance", "4"],
    "real": ["--method", "fpe,p2p,masactrl,pnp,sdedit", *PHOTO, "--steps", "8"],
    "null-text": ["--method", "p2p", *PHOTO, "--inversion", "null-text", "--steps", "4"],
    "edit-friendly": ["--method", "none", *PHOTO, "--inversion", "edit-friendly", "--steps", "8", "--allow-no-op"],
    "direct": ["--method", "p2p,masactrl", *PHOTO, "--inversion", "direct", "--steps", "8"],
    "proximal": ["--method", "masactrl", *PHOTO, "--modifier", "proximal", "--steps", "8"],
}


def rounding() -> dict[str, str]:
    """What the last bits of a picture depend on beside the code."""
    import torch

    return {"torch": torch.__version__.partition("+")[0], "cpu": torch.backends.cpu.get_cpu_capability()}


def pictures(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Carry out one run in `folder`; its pictures (H, W, 3) by file name."""
    from attnctl.cli import main

    code = main(["run", *RUNS[name], "--model", "micro", "--device", "cpu", "--out", str(folder / name)])
    assert code == 0, f"attnctl run of {name} ended with {code}"
    return {
        f"{name}-{path.name}": np.asarray(Image.open(path).convert("RGB"))
        for path in sorted((folder / name).glob("*.png"))
        if path.stem not in {"side-by-side", "input"}
    }


@pytest.mark.parametrize("name", RUNS)
def test_pictures_are_what_they_were(name: str, tmp_path: Path) -> None:
    recorded = json.loads((FOLDER / "rounding.json").read_text(encoding="utf-8"))
    exact = recorded == rounding()
    found = pictures(name, tmp_path)
    assert found
    assert set(found) == {path.name for path in FOLDER.glob(f"{name}-*.png")}
    for file, pixels in found.items():
        before = np.asarray(Image.open(FOLDER / file).convert("RGB"))
        apart = np.abs(pixels.astype(int) - before.astype(int))
        if exact:
            assert not apart.any(), f"{file}: {int((apart > 0).sum())} values differ, by up to {int(apart.max())}"
        else:
            assert apart.mean() < 0.5, f"{file}: {apart.mean():.2f} of 255 apart on the average"


def test_a_change_would_be_seen(tmp_path: Path) -> None:
    """The recorded pictures are no blanks, and an edit is not its source."""
    source, edit = (np.asarray(Image.open(FOLDER / f"demo-{name}.png")).astype(int) for name in ("source", "fpe"))
    assert source.std() > 10
    assert np.abs(source - edit).mean() > 5


def latents(kind: str) -> dict[str, str]:
    """Digests of the latents of every method on a tiny random model, with drawn and with given sources."""
    import hashlib

    import torch

    from attnctl.model import Model, check_supported
    from attnctl.request import Edit, EditRequest
    from attnctl.session import EditSession
    from attnctl.testing import tiny_sd, tiny_sdxl

    pipe = {"sd": tiny_sd, "sdxl": tiny_sdxl}[kind.partition("-")[0]](
        prediction_type="v_prediction" if kind.endswith("-v") else "epsilon"
    )
    session = EditSession(Model(pipe, kind, family=check_supported(pipe, kind)))
    pixels = torch.rand((3, 64, 96), generator=torch.Generator().manual_seed(2)) * 2 - 1
    methods = ("fpe", "p2p", "masactrl", "pnp", "pix2pix-zero", "none")
    edits = tuple(Edit("a blue cat on the grass", name, name=name) for name in methods)
    shared = {"source_prompt": "a red cat on the grass", "steps": 5, "seed": 3, "allow_no_op": True}
    sdedit = (Edit("a blue cat on the grass", "sdedit", name="sdedit"),)
    results = {
        "generated": session.run(EditRequest(edits, size=(64, 96), **shared)),
        "negative": session.run(EditRequest(edits, size=(64, 96), negative_prompt="a dog", **shared)),
        "plain": session.run(EditRequest(edits[:1], size=(64, 96), guidance=1.0, **shared)),
        "chunks": session.run(EditRequest(edits, size=(64, 96), max_rows=3, **shared)),
        "real": session.run(EditRequest((*edits[1:], *sdedit), pixels=pixels, check_reconstruction=False, **shared)),
    }
    return {
        f"{kind} {name} {lane.name}": hashlib.sha256(lane.latents.numpy().tobytes()).hexdigest()[:16]
        for name, result in results.items()
        for lane in result.lanes
    }


@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl"])
def test_latents_are_what_they_were(kind: str) -> None:
    if json.loads((FOLDER / "rounding.json").read_text(encoding="utf-8")) != rounding():
        pytest.skip("this torch and processor round otherwise than those that the digests were recorded with")
    recorded = json.loads((FOLDER / "latents.json").read_text(encoding="utf-8"))
    assert latents(kind) == {name: value for name, value in recorded.items() if name.split()[0] == kind}


if __name__ == "__main__":
    import os
    import tempfile

    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for run in RUNS:
            for file, pixels in pictures(run, Path(work)).items():
                Image.fromarray(pixels).save(FOLDER / file)
    found = {name: digest for kind in ("sd", "sd-v", "sdxl") for name, digest in latents(kind).items()}
    (FOLDER / "latents.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "rounding.json").write_text(json.dumps(rounding()) + "\n", encoding="utf-8")
