"""Direct inversion: the source lane is put back on the inverted path after every step; edits run free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.method import MethodConfig, Preset
from attnctl_plugins.inversions.ddim import ddim_path, guided, rows_of_guidance

if TYPE_CHECKING:
    from torch import Tensor


class Direct(Inversion):
    r"""Direct inversion, also "PnP inversion" (Ju et al., ICLR 2024, arXiv 2310.01506).

    DDIM inversion to L. Published is a second pass that finds, for every step i of guided sampling from L[T-i],

        o_i = L[T-1-i] - S(L[T-i], CFG(L[T-i], t_i), t_i)

    and adds o_i to the source lane after the same step of the edit, so that the source stays on L. Edits read nothing
    of the source but its activations at L, and to write L[T-1-i] into the source lane gives them the same numbers: it
    needs no second pass and cannot drift. That is the default; `offsets` is the published form.
    """

    name = "direct"
    summary = "Keep the source lane on the inverted path, step by step; edits are free."
    paper = "arXiv:2310.01506"
    bibtex = """@inproceedings{ju2024pnpinversion,
  title = {PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code},
  author = {Ju, Xuan and Zeng, Ailing and Bian, Yuxuan and Liu, Shaoteng and Xu, Qiang},
  booktitle = {ICLR},
  year = {2024}
}"""
    presets: ClassVar[Mapping[str, Preset]] = {
        "reference": Preset({"offsets": True}, "The authors' code: offsets from a guided pass, added after every step.")
    }
    pin: Literal["none", "start", "end"] = "end"

    class Config(MethodConfig):
        """Settings of direct inversion."""

        offsets: bool = Field(
            False, description="Add the published offsets, found in a pass of their own, in place of overwriting."
        )

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__(config)
        if self.config.offsets:
            self.pin = "none"

    def rows(self, steps: int) -> int | None:
        """One row per step; the pass for offsets takes more, as the texts are."""
        return None if self.config.offsets else steps

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w); with `offsets` also o of shape (T, C, h, w)."""
        count = len(call.grid.timesteps)
        if not self.config.offsets:
            return Trajectory(ddim_path(call), call.source.prompt, denoiser_rows=count)
        path = ddim_path(replace(call, tick=lambda done, _: call.tick(done, 2 * count)))
        rows = count * (1 + rows_of_guidance(call.uncond, call.source, call.guidance))
        return Trajectory(path, call.source.prompt, offsets=self._offsets(call, path), denoiser_rows=rows)

    def _offsets(self, call: InversionCall, path: Tensor) -> Tensor:
        import torch

        count = len(call.grid.timesteps)
        found: list[Tensor] = []
        for i in range(count):
            x = path[count - i][None]
            out = guided(call, x, call.grid.timesteps[i], call.source, call.guidance)
            found.append(path[count - 1 - i][None] - call.grid.denoise(i, out, x))
            call.tick(count + i + 1, 2 * count)
        return torch.cat(found)


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register direct inversion."""
    return [Direct]
