"""Laws that every edit method obeys, as a class that its test inherits.

    class TestMine(MethodConformance):
        method = Mine

runs each law on a tiny real pipeline on the CPU, a few seconds in all. Needs pytest only to be collected by it.
"""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from attnctl.method import EditMethod, EditPlan, ModelView
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest, PlanRequest
from attnctl.session import EditSession, Event, Progress
from attnctl.testing.tiny import tiny_model

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.model import Model
    from attnctl.result import EditResult


class MethodConformance:
    """Inherit, set `method`, and pytest checks the laws below.

    Attributes:
        method: The class under test.
        settings: Values for its `Config`.
        off: Settings with which it does nothing at all; None if there are none (then that law is skipped).
        source: Source prompt.
        targets: Two target prompts.
        steps: Number of denoising steps of every run.
        tolerance: Relative L2 distance allowed where rounding may differ, because batches have other sizes.
        skipped: Laws that do not hold for the method, by name (without ``test_``), each with the reason.
    """

    method: ClassVar[type[EditMethod]]
    settings: ClassVar[Mapping[str, Any]] = {}
    off: ClassVar[Mapping[str, Any] | None] = None
    source: ClassVar[str] = "a photo of a red cat sitting on the grass"
    targets: ClassVar[tuple[str, str]] = (
        "a photo of a blue dog sitting on the grass",
        "a photo of a red cat sitting on the snow",
    )
    steps: ClassVar[int] = 5
    tolerance: ClassVar[float] = 1e-4
    skipped: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        """Replace switched-off laws by skips; a law that does not exist is an error here and now."""
        super().__init_subclass__()
        for law, reason in cls.skipped.items():
            if not hasattr(MethodConformance, f"test_{law}"):
                known = sorted(n[5:] for n in vars(MethodConformance) if n.startswith("test_"))
                raise TypeError(f"{cls.__name__} skips a law {law!r} that does not exist; laws are {', '.join(known)}")
            setattr(cls, f"test_{law}", _skip(reason))

    # -- what the laws are made of -----------------------------------------------------------------------------------

    def model(self, dtype: torch.dtype = torch.float32) -> Model:
        """Return the model that the laws run on; override it for a method that needs another one."""
        return _model(dtype)

    def edit(self, prompt: str | None = None, settings: Mapping[str, Any] | None = None) -> Edit:
        """Return an edit by the method, to the first target prompt unless told otherwise."""
        return Edit(prompt or self.targets[0], self.method.name, self.settings if settings is None else settings)

    def request(self, *edits: Edit, **changes: Any) -> EditRequest:
        """Return a request for a generated source; `changes` are fields of `EditRequest`."""
        fields = {"source_prompt": self.source, "steps": self.steps, **changes}
        return EditRequest(edits or (self.edit(),), **fields)

    def session(self, dtype: torch.dtype = torch.float32) -> EditSession:
        """Return a session that knows the method, its uncontrolled twin, and whatever is installed."""
        registry = Registry.load()
        registry.classes["method"][self.method.name] = self.method
        registry.classes["method"]["uncontrolled-twin"] = uncontrolled_twin(self.method)
        return EditSession(self.model(dtype), registry)

    def run(self, *edits: Edit, **changes: Any) -> EditResult:
        """Run a request for a generated source."""
        return self.session().run(self.request(*edits, **changes), record=True)

    def plain(self, **changes: Any) -> EditResult:
        """Run the method's plan without its controllers."""
        return self.run(Edit(self.targets[0], "uncontrolled-twin", self.settings), **changes)

    def assert_complete(self, result: EditResult) -> None:
        """Every controller acted wherever it said, and every picture is finite and not constant."""
        for row in result.coverage:
            assert row.acted == row.expected, f"{row.controller} of {row.lane} acted {row.acted}/{row.expected} times"
        for lane in result.lanes:
            assert torch.isfinite(lane.latents).all(), f"{lane.name} is not finite"
            assert lane.pixels.std() > 0, f"{lane.name} is one flat colour"

    def assert_close(self, a: Tensor, b: Tensor, what: str) -> None:
        """Relative L2 distance within `tolerance`."""
        found = distance(a, b)
        assert found <= self.tolerance, f"{what}: relative distance {found:.2e}, allowed {self.tolerance:.0e}"

    # -- laws --------------------------------------------------------------------------------------------------------

    def test_coverage(self) -> None:
        """Controllers act wherever they say; a method with controllers has something to do."""
        result = self.run()
        self.assert_complete(result)
        assert self.method.no_op or any(row.acted for row in result.coverage)

    def test_acts(self) -> None:
        """The edit differs from the uncontrolled lane by far more than rounding."""
        found = distance(self.run()["edit[0]"].latents, self.plain()["edit[0]"].latents)
        assert found > 10 * self.tolerance, f"relative distance to the uncontrolled lane is only {found:.2e}"

    def test_off(self) -> None:
        """With the settings `off` the edit is the uncontrolled lane, bit for bit."""
        if self.off is None:
            raise unittest.SkipTest("no settings of this method switch it off")
        edited = self.run(self.edit(settings={**self.settings, **self.off}))
        assert torch.equal(edited["edit[0]"].latents, self.plain()["edit[0]"].latents)

    def test_source_unchanged(self) -> None:
        """The source does not feel the edit, at any step, bit for bit."""
        edited, plain = self.run().source.history, self.plain().source.history
        assert edited is not None
        assert plain is not None
        assert torch.equal(edited, plain)

    def test_equal_prompts(self) -> None:
        """Equal prompts and equal noise give the source again."""
        result = self.run(self.edit(self.source), allow_no_op=True)
        self.assert_close(result["edit[0]"].latents, result.source.latents, "edit against source")

    def test_repeatable(self) -> None:
        """A second run has the same bits."""
        first, second = self.run(), self.run()
        for a, b in zip(first.lanes, second.lanes, strict=True):
            assert torch.equal(a.latents, b.latents), a.name
            assert torch.equal(a.pixels, b.pixels), a.name

    def test_restores(self) -> None:
        """The very processor objects and hooks from before are back, also after an exception in the middle."""
        session = self.session()
        before = fingerprint(session.model.denoiser)
        session.run(self.request())
        assert fingerprint(session.model.denoiser) == before, "after a run"

        def stop(event: Event) -> None:
            if isinstance(event, Progress) and event.stage == "edit" and event.done == 2:
                raise InterruptedError

        try:
            session.run(self.request(), stop)
        except InterruptedError:
            assert fingerprint(session.model.denoiser) == before, "after an exception"
        else:
            raise AssertionError("the run was not interrupted")

    def test_not_square(self) -> None:
        """Pictures may be wide or tall."""
        for size in ((64, 96), (96, 64)):
            result = self.run(size=size)
            self.assert_complete(result)
            assert tuple(result["edit[0]"].pixels.shape[-2:]) == size

    def test_without_guidance(self) -> None:
        """Guidance 1 runs the conditional half alone."""
        self.assert_complete(self.run(guidance=1.0))

    def test_two_edits(self) -> None:
        """Two edits in one pass are what each is alone."""
        edits = [self.edit(p) for p in self.targets]
        both = self.run(*edits)
        self.assert_complete(both)
        for i, edit in enumerate(edits):
            self.assert_close(both[f"edit[{i}]"].latents, self.run(edit)["edit[0]"].latents, f"edit {i} beside another")

    def test_order_of_edits(self) -> None:
        """Permuting the edits permutes the pictures."""
        edits = [self.edit(p) for p in self.targets]
        one, other = self.run(*edits), self.run(*reversed(edits))
        for i in (0, 1):
            self.assert_close(one[f"edit[{i}]"].latents, other[f"edit[{1 - i}]"].latents, f"edit {i} in another place")

    def test_split(self) -> None:
        """Lanes that do not fit into one call are split without changing a picture."""
        edits = [self.edit(p) for p in self.targets]
        whole, split = self.run(*edits), self.run(*edits, max_rows=1)
        for a, b in zip(whole.lanes, split.lanes, strict=True):
            self.assert_close(a.latents, b.latents, f"{a.name} split")

    def test_bfloat16(self) -> None:
        """Half precision works and covers the same places."""
        self.assert_complete(self.session(torch.bfloat16).run(self.request()))

    def test_real_picture(self) -> None:
        """A given picture is inverted and edited."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand((3, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2) * 2 - 1
        prompt = self.source if self.method.needs_source_prompt else None
        result = self.run(pixels=pixels, source_prompt=prompt)
        self.assert_complete(result)
        assert result.inversions


def uncontrolled_twin(method: type[EditMethod]) -> type[EditMethod]:
    """Return a method that plans what `method` plans, without its controllers."""

    class Twin(EditMethod):
        """The same source, inversion and prompts; no control."""

        name = "uncontrolled-twin"
        no_op = True
        Config = method.Config

        def plan(self, request: PlanRequest, model: ModelView) -> EditPlan:
            return replace(method(self.config).plan(request, model), controllers=())

    return Twin


def fingerprint(unet: torch.nn.Module) -> dict[str, tuple[int, int, int, int]]:
    """Return, per module, the identity of its processor (0: none) and how many hooks of each sort it carries."""
    return {
        name: (
            id(getattr(module, "processor", None)),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
        )
        for name, module in unet.named_modules()
    }


def distance(a: Tensor, b: Tensor) -> float:
    """Return the relative L2 distance of `a` from `b`."""
    return float((a.double() - b.double()).norm() / b.double().norm())


@cache
def _model(dtype: torch.dtype) -> Model:
    return tiny_model(dtype=dtype)


def _skip(reason: str) -> Any:
    def skipped(self: MethodConformance) -> None:
        raise unittest.SkipTest(reason)

    return skipped
