"""Negative-prompt inversion: the source prompt takes the place of the unconditional text; nothing is optimised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.method import MethodConfig
from attnctl_plugins.inversions.ddim import ddim_path

if TYPE_CHECKING:
    from torch import Tensor


class NegativePrompt(Inversion):
    """Negative-prompt inversion (Miyake et al., arXiv 2305.16807).

    DDIM inversion, and then the source prompt as the unconditional text of every lane and step. Both halves of the
    source lane are equal, so it is sampled as without guidance; an edit lane is guided from the source prompt to its
    own, e = e(source) + g (e(target) - e(source)).
    """

    name = "negative-prompt"
    summary = "The source prompt replaces the unconditional text; guidance leads from it to the target prompt."
    paper = "arXiv:2305.16807"
    bibtex = """@article{miyake2023negative,
  title = {Negative-prompt Inversion: Fast Image Inversion for Editing with Text-guided Diffusion Models},
  author = {Miyake, Daiki and Iohara, Akihiro and Saito, Yu and Tanaka, Toshiyuki},
  journal = {arXiv preprint arXiv:2305.16807},
  year = {2023}
}"""
    needs_prompt = True
    replaces_uncond = True

    class Config(MethodConfig):
        """Settings of negative-prompt inversion."""

        interpolate: float = Field(
            0.0,
            ge=0,
            le=1,
            description="How far to turn back from the source prompt (0) to the empty prompt (1), on the sphere.",
        )

    def rows(self, steps: int) -> int:
        """One row per step."""
        return steps

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w); the trajectory's one unconditional text serves all steps."""
        path = ddim_path(call)
        share = self.config.interpolate
        text = call.text.map(lambda a, b: slerp(a, b, share), call.uncond)
        return Trajectory(path, call.text.prompt, (text.parts,), denoiser_rows=path.shape[0] - 1)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Interpolate on the sphere between flattened tensors of equal shape: a at 0, b at 1, a itself if they align."""
    import torch

    if share == 0:
        return a
    if share == 1:
        return b
    u, v = (x.double().flatten() for x in (a, b))
    cosine = torch.dot(u / u.norm(), v / v.norm()).clamp(-1, 1)
    angle = torch.acos(cosine)
    if not float(torch.sin(angle)) > 1e-7:
        return a
    mixed = (torch.sin((1 - share) * angle) * a.double() + torch.sin(share * angle) * b.double()) / torch.sin(angle)
    return mixed.to(a.dtype)


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register negative-prompt inversion."""
    return [NegativePrompt]
