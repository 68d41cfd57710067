"""Small networks with random weights, in the file layouts of the real ones."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attnctl.metric import Metric, Sample, Score


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches that are empty, wherever the tests run."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def score(metric: Metric, given: Sample) -> Score:
    return metric.score([given])[0]


def make(kind: type[Metric], **settings: object) -> Metric:
    return kind(kind.Config(**settings))


def smooth(seed: int, height: int = 48, width: int = 48) -> torch.Tensor:
    """A picture (3, H, W) in [0, 1] that is neither flat nor noise."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def sample(seed: int = 0, height: int = 48, width: int = 48, **fields: object) -> Sample:
    """An edit inside a rectangle, a little noise outside."""
    source = smooth(seed, height, width)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    noise = 0.02 * torch.rand(source.shape, generator=torch.Generator().manual_seed(seed + 1))
    edited = (torch.where(mask, 1 - source, source) * 0.98 + noise).clamp(0, 1)
    known = {
        "source": source,
        "source_prompt": "a red car",
        "mask": mask,
        "truth": torch.where(mask, 1 - source, source),
    }
    return Sample(edited, "a blue car", **{**known, **fields})  # fmt: skip


def by_trunk(net: str, seed: int = 0) -> object:
    """The package's own LPIPS on a random trunk."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        import lpips

        torch.manual_seed(seed)
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


@pytest.fixture(scope="session")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random trunks, keys as in torchvision's files."""
    folder = tmp_path_factory.mktemp("trunks")
    for net, name in (("alex", "alexnet"), ("squeeze", "squeezenet1_1")):
        held = {f"features.{k.partition('.')[2]}": v for k, v in by_trunk(net).net.state_dict().items()}
        save_file(held, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in open_clip's folder layout that reads whole words."""
    import open_clip

    from attnctl_evaluation.metrics.clip_models import WORDS, WordTokenizer

    words = ("a", "red", "blue", "car", "on", "road")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 10, "vocab_size": WordTokenizer(words, 10).size, "width": 32, "heads": 2,
                     "layers": 2},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.CLIP(**config)
        for value in model.parameters():  # the initial weights are so small that all embeddings are alike
            torch.nn.init.normal_(value, std=0.2) if value.ndim > 1 else None
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess, WORDS: words})
    )
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest vision transformer."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        net = timm.create_model("test_vit", pretrained=False, num_classes=0)
    path = tmp_path_factory.mktemp("vit") / "test_vit.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return path
