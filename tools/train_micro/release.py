"""Copy a trained model into the package: ``attnctl/models/micro``."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from common import MODEL, RUNS
from diffusers import AutoencoderKL


def clean(folder: Path) -> None:
    """Take the paths of the machine that trained the model out of its configurations."""
    for path in folder.rglob("*.json"):
        if path.name in ("words.json", "demo.json"):
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def release(model: Path, out: Path, vae: Path | None) -> None:
    """Copy the exported `model` to `out`, with the autoencoder from `vae` when that is given."""
    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        shutil.rmtree(out / part, ignore_errors=True)
        shutil.copytree(model / part, out / part)
    for name in ("model_index.json", "words.json"):
        shutil.copy(model / name, out / name)
    if vae is not None:
        old = AutoencoderKL.load_config(model / "vae")["scaling_factor"]
        new = AutoencoderKL.from_pretrained(vae)
        if new.config.scaling_factor != old:
            raise SystemExit(
                f"{vae} has other latents than {model}: scaling factors {new.config.scaling_factor}, {old}"
            )
        shutil.rmtree(out / "vae")
        new.to(torch.float16).save_pretrained(out / "vae")
    clean(out)


def main() -> None:
    """Release."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=RUNS / "model")
    parser.add_argument("--vae", type=Path, help="an autoencoder with the same latents and a better decoder")
    parser.add_argument("--out", type=Path, default=MODEL)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    release(arguments.model, arguments.out, arguments.vae)
    size = sum(p.stat().st_size for p in arguments.out.rglob("*") if p.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
