"""CLIP score and direction, with tiny models of random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from attnctl.errors import InputError
from attnctl.metric import Sample, Score, UnavailableError
from attnctl_evaluation.metrics.clip import ClipDirectional, ClipScore
from attnctl_evaluation.metrics.clip_models import WordTokenizer

from .conftest import make, sample, score

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class TestCLIP:
    def embeddings(self, folder: Path, given: Sample) -> dict[str, torch.Tensor]:
        """The four unit vectors by open_clip alone."""
        import open_clip

        model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        config = json.loads((folder / "open_clip_config.json").read_text())
        tokens = WordTokenizer(config["attnctl_vocabulary"], 10)
        picture = lambda p: Image.fromarray((p * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).numpy())  # noqa: E731
        with torch.no_grad():
            raw = {
                "edited": model.eval().encode_image(prepare(picture(given.edited))[None]),
                "inside": model.encode_image(prepare(picture(given.edited * given.mask))[None]),
                "source": model.encode_image(prepare(picture(given.source))[None]),
                "prompt": model.encode_text(tokens([given.prompt])),
                "source prompt": model.encode_text(tokens([given.source_prompt])),
            }
        return {k: torch.nn.functional.normalize(v[0].double(), dim=0) for k, v in raw.items()}

    def test_scores_are_cosines_of_the_models_own_embeddings(self, clip_folder: Path) -> None:
        given = sample()
        e = self.embeddings(clip_folder, given)
        own = {"model": str(clip_folder)}
        approx = lambda v: pytest.approx(float(v), abs=1e-4)  # noqa: E731
        assert score(make(ClipScore, **own), given).value == approx(100 * e["edited"] @ e["prompt"])
        assert score(make(ClipScore, **own, region="inside"), given).value == approx(100 * e["inside"] @ e["prompt"])
        assert score(make(ClipScore, **own, of="source"), given).value == approx(100 * e["source"] @ e["source prompt"])
        said, seen = e["prompt"] - e["source prompt"], e["edited"] - e["source"]
        assert score(make(ClipDirectional, **own), given).value == approx(said @ seen / said.norm() / seen.norm())

    def test_degenerate_cases_have_the_outcome_that_the_card_says(self, clip_folder: Path) -> None:
        given, own = sample(), {"model": str(clip_folder)}
        directional = make(ClipDirectional, **own)
        assert score(directional, replace(given, edited=given.source)) == Score(0.0, "the picture did not change")
        assert score(directional, replace(given, source_prompt=given.prompt)).reason == "the prompts do not differ"
        assert score(directional, replace(given, source_prompt=None)) == Score(None, "no source prompt")
        empty = replace(given, mask=torch.zeros_like(given.mask))
        assert score(make(ClipScore, **own, region="inside"), empty) == Score(None, "empty mask")
        scores = [score(make(ClipScore, **own, clamp=c), given).value for c in (False, True)]
        assert scores[1] == max(scores[0], 0.0)

    def test_other_weights_are_another_column_and_another_place_is_not(self, clip_folder: Path, tmp_path: Path) -> None:
        card = make(ClipScore, model=str(clip_folder)).card()
        copy = tmp_path / clip_folder.name
        shutil.copytree(clip_folder, copy)
        assert make(ClipScore, model=str(copy)).card().id == card.id
        changed = load_file(copy / "open_clip_model.safetensors")
        changed["text_projection"] = changed["text_projection"] + 1e-3
        other = tmp_path / "other" / clip_folder.name
        shutil.copytree(clip_folder, other)
        save_file(changed, other / "open_clip_model.safetensors")
        assert make(ClipScore, model=str(other)).card().id != card.id
        assert "0x" not in card.preprocessing
        assert "32" in card.preprocessing

    def test_without_weights_a_sentence_says_what_to_do(self, tmp_path: Path, clip_folder: Path) -> None:
        with pytest.raises(UnavailableError, match="not on this machine"):
            make(ClipScore).card()
        with pytest.raises(UnavailableError, match="not on this machine"):
            make(ClipScore, engine="transformers", model="openai/clip-vit-large-patch14").card()
        with pytest.raises(InputError, match=r"unknown CLIP model 'ViT-L-15'.*ViT-L-14"):
            make(ClipScore, model="ViT-L-15").card()
        with pytest.raises(InputError, match="unknown file or tag"):
            make(ClipScore, pretrained="openia").card()
        bare = tmp_path / "bare"
        bare.mkdir()
        shutil.copy(clip_folder / "open_clip_config.json", bare)
        with pytest.raises(UnavailableError, match="cannot be loaded"):
            make(ClipScore, model=str(bare)).card()

    def test_words_become_numbers_and_long_texts_keep_their_end(self) -> None:
        tokens = WordTokenizer(("a", "car"), 5)
        start, end, unknown = 4, 5, 3
        assert tokens(["A car"]).tolist() == [[start, 1, 2, end, 0]]
        assert tokens(["a green, car"]).tolist() == [[start, 1, unknown, 2, end]]
        assert tokens(["a a a a a a"]).tolist() == [[start, 1, 1, 1, end]]
        assert tokens.size == 6

    def test_transformers_engine_agrees_with_transformers(self, tmp_path: Path) -> None:
        """Pictures go the way of the Pillow processor."""
        from transformers import CLIPConfig, CLIPModel

        from attnctl.testing.tiny import tiny_tokenizer

        tokenizer = tiny_tokenizer()

        config = CLIPConfig(
            text_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "vocab_size": len(tokenizer),
                         "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
            vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            CLIPModel(config).save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
        mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
        numbers = {
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "image_mean": mean,
            "image_std": std,
        }
        (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(numbers))
        given = sample(0, 48, 64)
        model = CLIPModel.from_pretrained(tmp_path / "m").eval()
        picture = Image.fromarray((given.edited * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).numpy())
        small = picture.resize((42, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
        pixels = torch.tensor(list(small.getdata()), dtype=torch.float32).reshape(32, 32, 3).permute(2, 0, 1) / 255
        pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        with torch.no_grad():
            out = model(pixel_values=pixels[None], **tokenizer([given.prompt], return_tensors="pt"))
        expected = 100 * float((out.image_embeds @ out.text_embeds.T).squeeze())
        metric = make(ClipScore, engine="transformers", model=str(tmp_path / "m"))
        assert score(metric, given).value == pytest.approx(expected, abs=1e-4)
        assert score(metric, replace(given, prompt="car " * 200)).value is not None
