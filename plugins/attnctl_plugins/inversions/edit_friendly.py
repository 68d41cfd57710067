"""Edit-friendly DDPM inversion: noise the picture independently at every level, and keep the noise between levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.method import MethodConfig, Preset
from attnctl.sampling import DDIMGrid
from attnctl_plugins.inversions.ddim import guided, rows_of_guidance


class EditFriendly(Inversion):
    r"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al., CVPR 2024, arXiv 2304.06140).

    X_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) n_k with fresh noise n_k at every level k; then, from the noisiest level
    down, z_i = (X_{k-1} - mu(X_k)) / sigma with the posterior's mean under the source prompt. Lanes start at a level
    below the noisiest and are sampled with these z_i, which carry the picture's layout.
    """

    name = "edit-friendly"
    summary = "Keep the noise maps of a stochastic sampler that passes through the picture; start late."
    paper = "arXiv:2304.06140"
    bibtex = """@inproceedings{huberman2024edit,
  title = {An Edit Friendly {DDPM} Noise Space: Inversion and Manipulations},
  author = {Huberman-Spiegelglas, Inbar and Kulikov, Vladimir and Michaeli, Tomer},
  booktitle = {CVPR},
  year = {2024}
}"""
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            {"skip": 0.36, "source_guidance": 3.5, "edit_guidance": 15.0},
            "The authors' code, meant for 100 steps.",
        ),
        "pie-bench": Preset(
            {"skip": 0.24, "source_guidance": 1.0, "edit_guidance": 7.5},
            "As compared by Ju et al., arXiv 2310.01506, with 50 steps.",
        ),
    }

    class Config(MethodConfig):
        """Settings of edit-friendly inversion."""

        skip: float = Field(
            0.36, ge=0, le=1, description="Share of the schedule, from its noisy end, that lanes leave out."
        )
        source_guidance: float = Field(3.5, ge=1, description="Guidance scale of the inversion and of the source lane.")
        edit_guidance: float | None = Field(
            15.0, ge=1, description="Guidance scale of edit lanes in place of the run's; null: the run's."
        )

    paths = ("ddim",)

    def source_guidance(self, guidance: float) -> float:
        """Return the scale under which the noise maps are found: the source lane must be sampled with the same."""
        return float(self.config.source_guidance)

    def edit_guidance(self, guidance: float) -> float:
        """Return the scale of edit lanes."""
        return guidance if self.config.edit_guidance is None else float(self.config.edit_guidance)

    def rows(self, steps: int) -> int | None:
        """One row per step; with guidance up to two, as the texts are."""
        return steps if self.config.source_guidance == 1 else None

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w) to X (T+1, C, h, w) and noise maps (T, C, h, w), drawn from `call.seed`.

        The maps are found anew from the levels as they are written, so that rounding does not add up; the map of the
        last step is zero: its mean is the picture.
        """
        import torch

        grid, count = call.grid, len(call.grid.timesteps)
        assert isinstance(grid, DDIMGrid)  # `paths` says so
        generator = torch.Generator().manual_seed(call.seed)
        wide = torch.promote_types(call.x0.dtype, torch.float32)
        levels = [call.x0.to(wide)]
        for i in reversed(range(count)):
            drawn = torch.randn(call.x0.shape, generator=generator).to(call.x0.device)
            levels.append(grid.noise(i, levels[0], drawn))
        noises = torch.zeros(count, *call.x0.shape[1:], dtype=wide, device=call.x0.device)
        for i in range(count):
            k = count - i
            x = levels[k].to(call.x0)
            out = guided(call, x, grid.timesteps[i], call.source, call.guidance)
            mean, sigma = grid.posterior(i, out.to(wide), x.to(wide))
            noises[i] = ((levels[k - 1] - mean) / sigma)[0]
            levels[k - 1] = mean + sigma * noises[i]
            call.tick(i + 1, count)
        noises[-1] = 0
        return Trajectory(
            torch.cat(levels).to(call.x0),
            call.source.prompt,
            start=int(count * self.config.skip),
            noises=noises,
            denoiser_rows=count * rows_of_guidance(call.uncond, call.source, call.guidance),
        )


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register edit-friendly inversion."""
    return [EditFriendly]
