"""Train the autoencoder of ``micro`` on rendered scenes.

Writes ``build/micro/vae`` (diffusers layout) and checkpoints beside it. Run with ``--help`` for the settings.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RUNS, Clock, cosine, device_of, psnr, save_checkpoint, sheet, to_tensor, training_batch
from diffusers import AutoencoderKL
from muon import optimizers
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from team import Team, run_team

from attnctl_evaluation.world import random_scene, render


def build(channels: tuple[int, ...], latent_channels: int) -> AutoencoderKL:
    """Make an untrained autoencoder without attention: it is convolutional, so it may train on crops."""
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=latent_channels,
        layers_per_block=1,
        # Few groups: with one or two channels in a group the norm would take away the mean colour.
        norm_num_groups=1,
        sample_size=128,
        mid_block_add_attention=False,
    )
    # A posterior of unit width would drown the latents for the first thousands of steps.
    with torch.no_grad():
        vae.quant_conv.weight[latent_channels:] *= 0.1
        vae.quant_conv.bias[latent_channels:] = -7.0
    return vae


@torch.no_grad()
def widened(old: AutoencoderKL, channels: tuple[int, ...]) -> AutoencoderKL:
    """Make a wider autoencoder that gives the same pictures: each channel stands in it several times.

    The decoder's copies differ a little, so that training can tell them apart; the latents stay what they were.

    Args:
        old: The autoencoder, with one group in its norms.
        channels: Channels of the levels, multiples of the old ones.

    Raises:
        ValueError: A level is not a multiple of the old one.
    """
    for before, after in zip(old.config.block_out_channels, channels, strict=True):
        if after % before:
            raise ValueError(f"{after} channels are not a multiple of {before}")
    new = AutoencoderKL.from_config({**old.config, "block_out_channels": channels})
    weights = old.state_dict()
    for name, wide in new.state_dict().items():
        narrow = weights[name]
        times = [a // b for a, b in zip(wide.shape, narrow.shape, strict=True)]
        copy = narrow.repeat(times) / (times[1] if len(times) > 1 else 1)
        if name.startswith("decoder.") and max(times) > 1 and len(times) > 1:
            copy = copy * (1 + 0.1 * torch.randn_like(copy))
        wide.copy_(copy)
    return new


def crops(scenes: list, pictures: torch.Tensor, rng: random.Random, size: int) -> torch.Tensor:
    """Cut a square around a chance point of an object from each picture."""
    side, parts = pictures.shape[-1], []
    for scene, picture in zip(scenes, pictures, strict=True):
        left, top, right, bottom = rng.choice(scene.things).box
        x = rng.uniform(left, right) * side - size / 2
        y = rng.uniform(top, bottom) * side - size / 2
        # Multiples of 8 keep the grid of latents where it is in the whole picture.
        column = 8 * round(min(max(x, 0), side - size) / 8)
        row = 8 * round(min(max(y, 0), side - size) / 8)
        parts.append(picture[:, row : row + size, column : column + size])
    return torch.stack(parts)


def gradient_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the differences of neighbouring pixels."""
    d = a - b
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def loss_of(
    vae: AutoencoderKL, x: torch.Tensor, *, noise: float, kl: float, square: float, encoder: bool
) -> torch.Tensor:
    """Reconstruction loss with some noise on the latents, so that small errors of the UNet do no harm."""
    with torch.set_grad_enabled(encoder):
        posterior = vae.encode(x).latent_dist
        z = posterior.sample() if encoder else posterior.mode()
    level = noise * z.detach().std() * torch.rand(z.shape[0], 1, 1, 1, device=z.device)
    y = vae.decode(z + level * torch.randn_like(z)).sample
    loss = F.l1_loss(y, x) + 0.5 * gradient_l1(y, x) + square * F.mse_loss(y, x)
    return loss + kl * posterior.kl().mean() / z[0].numel() if encoder else loss


@torch.no_grad()
def evaluate(vae: AutoencoderKL, count: int, device: torch.device) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Mean reconstruction PSNR in dB on held-out scenes, and the last pictures before and after."""
    rng, values = random.Random(12345), []
    x = y = torch.empty(0)
    for _ in range(0, count, 16):
        x = to_tensor([render(random_scene(rng, held_out=True)) for _ in range(16)]).to(device)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
        values.append(psnr(x, y))
    return float(torch.cat(values).mean()), x, y


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RUNS / "vae")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 96])
    parser.add_argument("--latent-channels", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64, help="training crop in pixels; 128 is the whole picture")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--muon-rate", type=float, default=4e-3, help="0 for AdamW alone")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--hold", type=float, default=0.4, help="part of the run at the full learning rate")
    parser.add_argument("--square", type=float, default=10.0, help="weight of the squared error, which PSNR counts")
    parser.add_argument("--kl", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--init", type=Path, help="continue from a saved autoencoder, widened to --channels")
    parser.add_argument("--decoder-only", action="store_true", help="keep the latents, train the decoder")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    parser.add_argument("--workers", type=int, default=1, help="processes; on a CPU, one per core")
    parser.add_argument("--device")
    return parser.parse_args()


def train(team: Team) -> None:
    """Train as one of a team of processes."""
    arguments = parse()
    device = device_of(arguments.device)
    torch.manual_seed(arguments.seed)
    vae = (
        AutoencoderKL.from_pretrained(arguments.init)
        if arguments.init
        else build(tuple(arguments.channels), arguments.latent_channels)
    )
    if tuple(vae.config.block_out_channels) != tuple(arguments.channels):
        vae = widened(vae, tuple(arguments.channels))
    vae.to(device, memory_format=torch.channels_last)
    if arguments.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    weights = [p for p in vae.parameters() if p.requires_grad]
    made = optimizers(
        vae, rate=arguments.rate, muon_rate=arguments.muon_rate, keep=("conv_in", "conv_out", "quant_conv")
    )
    checkpoint, step, spent = arguments.out / "checkpoint.pt", 0, 0.0
    if arguments.resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(made, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["seconds"]
    seed = arguments.seed * 1_000_003 + 1_009 * step + team.rank
    rng = random.Random(seed)
    torch.manual_seed(seed)
    clock = Clock(arguments.steps, arguments.minutes, spent)
    arguments.out.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        if not team.first:
            return
        vae.save_pretrained(arguments.out)
        save_checkpoint(
            checkpoint,
            {
                "vae": vae.state_dict(),
                "optimizers": [o.state_dict() for o in made],
                "step": step,
                "seconds": clock.seconds,
            },
        )

    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, disable=not team.first) as bar:
        task = bar.add_task("autoencoder", total=1000, note="")
        progress = 0.0
        while progress < 1.0:
            scenes, x = training_batch(rng, arguments.batch)
            if arguments.crop < x.shape[-1]:
                x = crops(scenes, x, rng, arguments.crop)
            factor = cosine(progress, step, warmup=50, hold=arguments.hold)
            for group in (g for optimizer in made for g in optimizer.param_groups):
                group["lr"] = group["base"] * factor
            loss = loss_of(
                vae,
                x.to(device),
                noise=arguments.noise,
                kl=arguments.kl,
                square=arguments.square,
                encoder=not arguments.decoder_only,
            )
            vae.zero_grad(set_to_none=True)
            loss.backward()
            progress = team.average(weights, clock.progress(step + 1))
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for optimizer in made:
                optimizer.step()
            step += 1
            bar.update(task, completed=round(1000 * progress), note=f"step {step} loss {loss.item():.4f}")
            if step % arguments.every == 0 and team.first:
                value, before, after = evaluate(vae, 32, device)
                print(f"step {step} {clock.seconds:.0f} s loss {loss.item():.4f} held-out {value:.2f} dB", flush=True)
                sheet([before[:8], after[:8]], arguments.out / "sheet.png")
                save()
        if not team.first:
            return
        value, before, after = evaluate(vae, 128, device)
        sheet([before[:8], after[:8]], arguments.out / "sheet.png")
        save()
    print(f"done: {step} steps, {clock.seconds:.0f} s, held-out {value:.2f} dB", flush=True)


if __name__ == "__main__":
    run_team(parse().workers, train)
