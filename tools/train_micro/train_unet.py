"""Train the UNet and the text encoder of ``micro`` on encoded scenes.

v-prediction, 10 % dropped captions, moving average of the weights. Runs by steps or by
wall-clock time, resumes from its checkpoint (``--resume``) or continues from released weights (``--init``).
New shards of latents that appear while it runs are picked up.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import MODEL, RUNS, Clock, cosine, device_of, save_checkpoint, sheet
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from encode import shard_scenes
from muon import optimizers
from outlines import OutlineHead
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from team import Team, run_team
from tokenizer import build as build_tokenizer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from words import WordMaps, owners

from attnctl_evaluation.world import Scene, caption, vocabulary

WIDTH = 128
SHEET_PROMPTS = (
    "a red car on a road", "a blue car on a road", "a green heart in the snow", "a purple striped fish at sea",
    "a white boat at sea", "an orange dotted mushroom on grass", "a yellow house in the desert",
    "a pink flower on grass", "a cyan star at night", "a brown striped cat on grass",
    "a navy ball and a gold tree in the snow", "a coral bird",
)  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    """An untrained UNet with the topology of Stable Diffusion 1.x, 16 transformer blocks."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 4, 4),
        # Eight channels to a group and more: smaller groups lose the mean colour.
        norm_num_groups=4,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder, two layers of width 128."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=77, projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = CLIPTextModel(config)
    for name, p in model.named_parameters():
        if name.endswith("token_embedding.weight"):
            nn.init.normal_(p, std=0.1)
    return model


class Captions:
    """Turn captions into token rows quickly: each known word is looked up once."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in vocabulary()}
        self._start, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id

    def row(self, text: str, scene: Scene) -> tuple[list[int], list[int]]:
        """The 77 token ids of a caption, and the label of the object that each describes, or 0."""
        words = text.split()
        pairs = [(i, owner) for word, owner in zip(words, owners(scene, words), strict=True) for i in self._ids[word]]
        pairs = [(self._start, 0), *pairs][:76]
        pairs += [(self._end, 0)] * (77 - len(pairs))
        return [i for i, _ in pairs], [owner for _, owner in pairs]


class Latents:
    """The encoded scenes, growing while shards are still being written."""

    def __init__(self, folder: Path, scale: float) -> None:
        self._folder, self._scale, self._seen = folder, scale, set[str]()
        self.scenes: list[Scene] = []
        self._parts: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._order: list[tuple[int, int]] = []

    def refresh(self) -> None:
        """Read shards that were not there before."""
        for path in sorted(self._folder.glob("*.npy")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                self._parts.append(np.load(path))
                self._labels.append(np.load(path.with_suffix(".labels")))
                self.scenes.extend(shard_scenes(int(path.stem)))

    def draw(self, rng: random.Random, count: int) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
        """Give a batch without replacement within an epoch.

        Returns:
            Scenes, scaled latents (n, c, h, w) and label maps (n, h, w).
        """
        chosen = []
        while len(chosen) < count:
            if not self._order:
                self._order = [(p, i) for p in range(len(self._parts)) for i in range(len(self._parts[p]))]
                rng.shuffle(self._order)
            chosen.append(self._order.pop())
        size = len(self._parts[0])
        scenes = [self.scenes[p * size + i] for p, i in chosen]
        latents = np.stack([self._parts[p][i] for p, i in chosen]).astype(np.float32)
        labels = np.stack([self._labels[p][i] for p, i in chosen]).astype(np.int64)
        return scenes, torch.from_numpy(latents) * self._scale, torch.from_numpy(labels)


class Average:
    """Exponential moving average of weights, with a short memory at the start."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self._live = [p for m in modules for p in m.parameters()]
        self.shadow = [p.detach().clone() for p in self._live]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the current weights."""
        torch._foreach_lerp_(
            self.shadow, [p.detach() for p in self._live], 1 - min(self._decay, (1 + step) / (10 + step))
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights with their averages."""
        for p, s in zip(self._live, self.shadow, strict=True):
            kept = p.detach().clone()
            p.copy_(s)
            s.copy_(kept)


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Attributes:
        latents: (n, c, h, w), scaled.
        labels: Label maps (n, h, w).
        tokens: (n, 77).
        owner: The label of the object that each token describes, or 0, (n, 77).
    """

    latents: torch.Tensor
    labels: torch.Tensor
    tokens: torch.Tensor
    owner: torch.Tensor


@dataclass(frozen=True)
class Weights:
    """What counts how much in the loss.

    Attributes:
        foreground: Cells of objects; cells of background count once.
        outline: The head that reads outlines.
        words: The places of words in cross-attention maps.
    """

    foreground: float
    outline: float
    words: float


def loss_of(
    models: nn.ModuleDict, maps: WordMaps, batch: Batch, alphas: torch.Tensor, weights: Weights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """v-prediction loss; steps of little noise count as in min-SNR-5 (Hang et al. 2023), all others fully.

    Args:
        models: ``unet``, ``text`` and ``head``.
        maps: The UNet's cross-attention maps.
        batch: The data.
        alphas: The schedule's cumulative products, (1000,).
        weights: What counts how much.

    Returns:
        The loss, the part of it that is the denoiser's, and how far words are from their objects.
    """
    latents = batch.latents
    count = latents.shape[0]
    # Stratified over time: less variance than independent draws.
    u = (torch.arange(count, device=latents.device) + torch.rand(count, device=latents.device)) / count
    t = (u * len(alphas)).long().clamp(max=len(alphas) - 1)
    a = alphas[t][:, None, None, None]
    noise = torch.randn_like(latents)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    target = a.sqrt() * noise - (1 - a).sqrt() * latents
    out = models["unet"](noisy, t, models["text"](batch.tokens).last_hidden_state).sample
    snr = alphas[t] / (1 - alphas[t])
    # min-SNR-5 would be min(snr, 5) / (snr + 1): next to nothing where noise prevails. But there the
    # objects' shapes are decided, and they are what a short training learns last.
    weight = (5.0 / (snr + 1)).clamp(max=1.0)
    cells = 1 + (weights.foreground - 1) * (batch.labels > 0).float()[:, None]
    each = (cells * (out - target).square()).mean(dim=(1, 2, 3)) / cells.mean()
    denoiser = (weight * each).mean() / weight.mean()
    outline = models["head"].loss(batch.labels, weight)
    # Where noise hides the objects no cell can know whose it is.
    words = maps.loss(batch.owner, batch.labels, weight * snr.clamp(max=1.0))
    return denoiser + weights.outline * outline + weights.words * words, denoiser, words


def export(pipe: StableDiffusionPipeline, out: Path) -> None:
    """Write the model as float16 safetensors in diffusers' layout."""
    import copy

    half = StableDiffusionPipeline(
        vae=copy.deepcopy(pipe.vae).half(), text_encoder=copy.deepcopy(pipe.text_encoder).half(),
        tokenizer=pipe.tokenizer, unet=copy.deepcopy(pipe.unet).half(), scheduler=pipe.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    half.save_pretrained(out, safe_serialization=True)
    build_tokenizer(out / "tokenizer")


@torch.no_grad()
def draw_sheet(pipe: StableDiffusionPipeline, path: Path, guidance: float) -> None:
    """Write a picture of the sheet's prompts."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    out = pipe(
        list(SHEET_PROMPTS), num_inference_steps=30, guidance_scale=guidance, generator=generator, output_type="pt",
        height=128, width=128,
    ).images  # fmt: skip
    rows = (out * 2 - 1).split(6)
    sheet(rows, path)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=RUNS / "vae")
    parser.add_argument("--latents", type=Path, default=RUNS / "latents")
    parser.add_argument("--run", type=Path, default=RUNS / "unet", help="checkpoints and sheets")
    parser.add_argument(
        "--out", type=Path, default=RUNS / "model", help="the exported model; the release is " + str(MODEL)
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--batch", type=int, default=48, help="scenes a step and process")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--muon-rate", type=float, default=3e-3, help="0 for AdamW alone")
    parser.add_argument("--hold", type=float, default=0.35, help="part of the run at the full learning rate")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--foreground", type=float, default=3.0, help="weight of objects' cells in the first half")
    parser.add_argument("--outline", type=float, default=0.2, help="weight of the head that reads outlines")
    parser.add_argument("--words", type=float, default=0.05, help="weight of words' places in cross-attention")
    parser.add_argument("--drop", type=float, default=0.1, help="share of empty captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=5.0, help="minutes between checkpoints")
    parser.add_argument("--sheet-every", type=int, default=1000, help="steps between sample sheets")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--init", type=Path, help="continue from an exported model")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="processes; on a CPU, one per core")
    parser.add_argument("--device")
    return parser.parse_args()


def load(arguments: argparse.Namespace, device: torch.device) -> StableDiffusionPipeline:
    """Make the untrained pipeline, or read the one to continue from."""
    # A folder for each process, so that none reads what another is still writing.
    folder = arguments.run / f"tokenizer{os.getpid()}" / "tokenizer"
    build_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    shutil.rmtree(folder.parent)
    vae = AutoencoderKL.from_pretrained(arguments.vae).eval().requires_grad_(False)
    if arguments.init:
        unet = UNet2DConditionModel.from_pretrained(arguments.init / "unet", torch_dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(arguments.init / "text_encoder", dtype=torch.float32)
    else:
        unet, text = build_unet(vae.config.latent_channels), build_text_encoder(tokenizer)
    return StableDiffusionPipeline(
        vae=vae.to(device), text_encoder=text.to(device), tokenizer=tokenizer,
        unet=unet.to(device, memory_format=torch.channels_last),
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def train(team: Team) -> None:
    """Train as one of a team of processes."""
    arguments = parse()
    device = device_of(arguments.device)
    torch.manual_seed(arguments.seed)
    pipe = load(arguments, device)
    unet, text = pipe.unet.train(), pipe.text_encoder.train()
    both = nn.ModuleDict({"unet": unet, "text": text, "head": OutlineHead(unet).to(device)})
    maps = WordMaps(unet)
    keep = ("embedding", "conv_in", "conv_out", "time_emb", "head")
    made = optimizers(both, rate=arguments.rate, muon_rate=arguments.muon_rate, keep=keep)
    average = Average([both], arguments.ema)
    weights = list(both.parameters())
    checkpoint, step, spent = arguments.run / "checkpoint.pt", 0, 0.0
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        both.load_state_dict(state["model"])
        for shadow, saved in zip(average.shadow, state["average"], strict=True):
            shadow.copy_(saved)
        for optimizer, saved in zip(made, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["seconds"]
    seed = arguments.seed * 1_000_003 + 1_009 * step + team.rank
    rng = random.Random(seed)
    torch.manual_seed(seed)
    clock = Clock(arguments.steps, arguments.minutes, spent)
    captions, latents = Captions(pipe.tokenizer), Latents(arguments.latents, pipe.vae.config.scaling_factor)
    latents.refresh()
    alphas = pipe.scheduler.alphas_cumprod.to(device)
    last_save, first_step, first_time, losses = time.monotonic(), step, time.monotonic(), []

    def save() -> None:
        if not team.first:
            return
        state = {
            "model": both.state_dict(), "average": average.shadow, "step": step, "seconds": clock.seconds,
            "optimizers": [o.state_dict() for o in made],
        }  # fmt: skip
        save_checkpoint(checkpoint, state)

    def show(name: str) -> None:
        if not team.first:
            return
        average.swap()
        both.eval()
        draw_sheet(pipe, arguments.run / name, arguments.guidance)
        export(pipe, arguments.out)
        both.train()
        average.swap()

    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, disable=not team.first) as bar:
        task = bar.add_task("unet", total=1000, note="")
        progress = 0.0
        while progress < 1.0:
            scenes, x, labels = latents.draw(rng, arguments.batch)
            texts = ["" if rng.random() < arguments.drop else caption(s, rng) for s in scenes]
            rows = [captions.row(t, s) for t, s in zip(texts, scenes, strict=True)]
            tokens, owner = torch.tensor(rows).to(device).unbind(dim=1)
            factor = cosine(progress, step, warmup=100, hold=arguments.hold)
            for group in (g for optimizer in made for g in optimizer.param_groups):
                group["lr"] = group["base"] * factor
            batch = Batch(x.to(device), labels.to(device), tokens, owner)
            # Towards the end every cell counts the same: extra weight on objects draws too many of them.
            foreground = 1 + (arguments.foreground - 1) * min(1.0, 2 * (1 - progress))
            counted = Weights(foreground, arguments.outline, arguments.words)
            loss, denoiser, placed = loss_of(both, maps, batch, alphas, counted)
            both.zero_grad(set_to_none=True)
            loss.backward()
            progress = team.average(weights, clock.progress(step + 1))
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for optimizer in made:
                optimizer.step()
            step += 1
            average.update(step)
            losses.append((denoiser.item(), placed.item()))
            speed = (step - first_step) * arguments.batch * team.size / (time.monotonic() - first_time)
            mean, words = np.mean(losses[-50:], axis=0)
            note = f"step {step} loss {mean:.4f} words {words:.3f} {speed:.1f} samples/s"
            bar.update(task, completed=round(1000 * progress), note=note)
            if step % 50 == 0 and team.first:
                print(f"{clock.seconds:.0f} s {note} of {len(latents.scenes)} scenes", flush=True)
            if step % arguments.sheet_every == 0:
                show(f"sheet{step:06d}.png")
            if time.monotonic() - last_save > 60 * arguments.every:
                last_save = time.monotonic()
                save()
                latents.refresh()
        save()
        show("sheet.png")
    if team.first:
        print(f"done: {step} steps, {step * arguments.batch * team.size} samples, {clock.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    run_team(parse().workers, train)
