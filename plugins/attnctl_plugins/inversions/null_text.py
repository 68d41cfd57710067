"""Null-text inversion: learn, step by step, the unconditional text under which guided sampling goes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.method import MethodConfig
from attnctl.text import TOKENS
from attnctl_plugins.inversions.ddim import ddim_path

if TYPE_CHECKING:
    from torch import Tensor


class NullText(Inversion):
    r"""Null-text inversion (Mokady et al., CVPR 2023, arXiv 2211.09794).

    After DDIM inversion to L, each sampling step i gets its own unconditional embedding phi_i, found by Adam from the
    one before:

        min over phi of  mean || S(x, e(phi) + g (e_cond - e(phi)), t_i) - L[T-1-i] ||^2

    All lanes on the trajectory are then sampled with phi_i. One row at a time goes through the denoiser, and only the
    embedding gets a gradient, so that memory stays near that of plain sampling plus one row's activations.
    """

    name = "null-text"
    summary = "Learn per-step unconditional texts under which guided sampling returns to the picture."
    paper = "arXiv:2211.09794"
    bibtex = """@inproceedings{mokady2023nulltext,
  title = {Null-text Inversion for Editing Real Images using Guided Diffusion Models},
  author = {Mokady, Ron and Hertz, Amir and Aberman, Kfir and Pritch, Yael and Cohen-Or, Daniel},
  booktitle = {CVPR},
  year = {2023}
}"""
    needs_prompt = True
    replaces_uncond = True

    class Config(MethodConfig):
        """Settings of null-text inversion."""

        inner_steps: int = Field(10, ge=0, le=1000, description="Optimiser steps per sampling step, at most.")
        early_stop: float = Field(
            1e-5, ge=0, description="A sampling step i is done when its loss is below this plus 2e-5 i."
        )
        learning_rate: float = Field(
            0.01, gt=0, description="Adam's learning rate in the first step; it falls by 1 % of this per step."
        )
        low_memory: bool = Field(
            False, description="Compute activations twice instead of keeping them: less memory, more time."
        )

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w) and learn T embeddings (1, M, C'), float32.

        Raises:
            InputError: The source is sampled with guidance 1, which reads no unconditional text.
        """
        if call.guidance == 1:
            raise InputError(
                "null-text learns an unconditional text, which guidance 1 never reads", hint="give --guidance above 1"
            )
        inner = self.config.inner_steps
        count = len(call.grid.timesteps)
        total = count * (3 + inner)
        path = ddim_path(replace(call, tick=lambda done, _: call.tick(done, total)))
        x, phi, rows = path[-1:], _wide(call.uncond.embeds), count
        texts: list[Tensor] = []
        losses: list[list[float]] = []
        with _only_inputs_learn(call.model.denoiser, checkpoints=self.config.low_memory):
            for i in range(count):
                cond = call.model.predict(x, call.grid.timesteps[i], [call.source])
                phi, lost = self._learn(call, i, x, cond, phi, path[count - 1 - i][None])
                uncond = _predict(call, i, x, phi)
                x = call.grid.denoise(i, uncond + call.guidance * (cond - uncond), x)
                texts.append(phi)
                losses.append(lost)
                rows += 2 + len(lost)
                call.tick(count + (i + 1) * (2 + inner), total)
        learned = tuple({TOKENS: phi} for phi in texts)
        return Trajectory(path, call.source.prompt, learned, denoiser_rows=rows, info={"losses": losses})

    def _learn(
        self, call: InversionCall, i: int, x: Tensor, cond: Tensor, start: Tensor, goal: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Optimise one step's embedding from `start`: the embedding, and every loss before its optimiser step."""
        import torch

        phi = start.clone().requires_grad_(True)
        rate = self.config.learning_rate * (1 - i / 100)
        adam = torch.optim.Adam([phi], lr=max(rate, 0.0))
        x, cond, goal = _wide(x), _wide(cond), _wide(goal)
        losses: list[float] = []
        for done in range(self.config.inner_steps):
            with torch.enable_grad():
                uncond = _wide(_predict(call, i, x.to(call.x0), phi))
                moved = call.grid.denoise(i, uncond + call.guidance * (cond - uncond), x)
                loss = torch.nn.functional.mse_loss(moved, goal)
            (phi.grad,) = torch.autograd.grad(loss, [phi])
            adam.step()
            losses.append(float(loss.detach()))
            call.tick(len(call.grid.timesteps) + i * (2 + self.config.inner_steps) + done + 1, self._total(call))
            if losses[-1] < self.config.early_stop + i * 2e-5:  # the step that was taken with this loss stays
                break
        return phi.detach(), losses

    def _total(self, call: InversionCall) -> int:
        inner: int = self.config.inner_steps
        return len(call.grid.timesteps) * (3 + inner)


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 unless it is wider already: half precision is too coarse for an optimiser's steps."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))


def _predict(call: InversionCall, i: int, x: Tensor, phi: Tensor) -> Tensor:
    """Run one unconditional row with the embedding `phi`, which may be wider than the model."""
    text = call.uncond.reworded({TOKENS: phi})
    return call.model.predict(x, call.grid.timesteps[i], [text])


@contextmanager
def _only_inputs_learn(denoiser: Any, *, checkpoints: bool) -> Iterator[None]:
    """Keep autograd from storing what only gradients of weights need; leave the denoiser as it was."""
    learning = [p for p in denoiser.parameters() if p.requires_grad]
    switch = checkpoints and not denoiser.is_gradient_checkpointing
    for weight in learning:
        weight.requires_grad_(False)
    if switch:
        denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)
        if switch:
            denoiser.disable_gradient_checkpointing()


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register null-text inversion."""
    return [NullText]
