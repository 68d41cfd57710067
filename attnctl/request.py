"""What a run is asked to do: one source, any number of edits, and the settings that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from attnctl.budget import MAX_EDITS, MAX_PROMPT, check_picture_size, check_steps, within
from attnctl.errors import InputError, unknown
from attnctl.recording import BUDGET, Recording
from attnctl.sampling import SCHEDULERS

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.plugin import Plugin


def check_text(text: str) -> None:
    """Refuse text that is no text: bytes that are not UTF-8, which a command line can hold.

    Raises:
        InputError: It is such, or longer than any model reads.
    """
    within("the length of a prompt in characters", len(text), MAX_PROMPT, hint="shorten it")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError("a prompt holds bytes that are not UTF-8", hint="type it in a terminal that uses UTF-8")


class OpenInt(int):
    """A whole number that stands in for one that nobody chose."""


class OpenFloat(float):
    """A number that stands in for one that nobody chose."""


STEPS: int = OpenInt(50)
"""The papers' number of denoising steps, for callers and models that name none."""

GUIDANCE: float = OpenFloat(7.5)
"""The papers' guidance scale, for callers and models that name none."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are sampled, whatever is edited: a part of every request, and what options and files ask for.

    Attributes:
        negative_prompt: Text of the unconditional half.
        steps: Number of denoising steps T.
        guidance: Classifier-free guidance scale g >= 1; 1 means the conditional prediction alone.
        seed: Seed of the start noise, drawn on the CPU.
        size: Picture (height, width); None means the model's own, or the picture's.
        scheduler: One of `attnctl.sampling.SCHEDULERS`.
        max_rows: Largest number of rows in one denoiser call; None means all at once.

    Raises:
        InputError: A value is out of range; the message says which and what is allowed.
    """

    negative_prompt: str = ""
    steps: int = STEPS
    guidance: float = GUIDANCE
    seed: int = 0
    size: tuple[int, int] | None = None
    scheduler: str = "ddim"
    max_rows: int | None = None

    def __post_init__(self) -> None:
        check_text(self.negative_prompt)
        if not self.guidance >= 1 or self.guidance == float("inf"):
            raise InputError(
                f"guidance must be a finite number of at least 1, found {self.guidance}",
                hint=f"{GUIDANCE} is the papers' value; 1 uses the conditional prediction alone",
            )
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, found {self.steps}", hint=f"{STEPS} is the papers' number")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"a seed must lie between 0 and 2**63 - 1, found {self.seed}", hint="use 0")
        check_steps(self.steps)
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size {self.size} is not allowed", hint="give height and width in pixels")
        if self.size is not None:
            check_picture_size(self.size)
        if self.scheduler not in SCHEDULERS:
            raise unknown("scheduler", self.scheduler, SCHEDULERS)
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"max_rows must be at least 1, found {self.max_rows}", hint="leave it out")

    @classmethod
    def of(cls, source: object, **instead: Any) -> Sampling:
        """Read it off anything that names its fields alike: parsed options, a comparison, a run's record, a request.

        Args:
            source: What to read; a field that it lacks, or that is None there, is left open.
            instead: Values that are used in place of the source's.

        Raises:
            InputError: A value is out of range.
        """
        found = {name: getattr(source, name, None) for name in SAMPLING_FIELDS} | instead
        return Sampling(**{name: value for name, value in found.items() if value is not None})

    @property
    def sampling(self) -> Sampling:
        """These settings alone, without what a request has beside them."""
        return Sampling.of(self)

    @property
    def open(self) -> tuple[str, ...]:
        """Names of the fields that nobody chose, so that what suits the model may take their place."""
        return tuple(n for n in SAMPLING_FIELDS if isinstance(getattr(self, n), (OpenInt, OpenFloat)))


SAMPLING_FIELDS = tuple(f.name for f in fields(Sampling))
"""The names of the settings of sampling, as options, files and records spell them, too."""


@dataclass(frozen=True)
class Edit:
    """One edit lane.

    Attributes:
        prompt: Target prompt.
        method: Registered method name; or an `EditMethod` that is built already, which brings its settings along.
        settings: Values for the method's ``Config`` by field name.
        preset: One of the method's presets; `settings` override it.
        name: Lane name; by default ``edit[0]``, ``edit[1]``, ...
        modifiers: Additions to the method, in their order: settings by modifier name, or built modifiers.

    Raises:
        InputError: A built method is given settings or a preset, which would come too late.
    """

    prompt: str
    method: str | Plugin
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    name: str | None = None
    modifiers: Mapping[str, Mapping[str, Any] | Plugin] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) and (self.settings or self.preset is not None):
            raise InputError(
                f"the method {self.method_name} is built already, so settings and a preset come too late",
                hint="give them to Registry.make_method, or give the method's name",
            )

    @property
    def method_name(self) -> str:
        """Name of the method, built or not."""
        return self.method if isinstance(self.method, str) else self.method.name


@dataclass(frozen=True, eq=False)
class EditRequest(Sampling):
    """A whole run; what it shares with other ways to sample is `Sampling`'s, and given by keyword like all the rest.

    Attributes:
        edits: The edit lanes, at least one.
        source_prompt: Text of the source; needed for generated sources, optional for real ones.
        pixels: A real source picture (3, H, W) in [-1, 1], float32; None generates the source.
        x0: Clean latents (1, C, h, w) instead of pixels.
        x_T: Start noise (1, C, h, w) instead of noise drawn from `seed`.
        mask: Where methods that use masks may change the source: (H, W) of the picture's or the latents' size, true
            or above 0.5 = may change.
        inversion: Inversion to use in place of the one that each method asks for.
        inversion_settings: Values for the ``Config`` of `inversion` by field name; ``preset`` names one of its presets.
        keep_source: Run a pinned source to the end, although only its trajectory matters.
        check_reconstruction: Measure how well the inversion reconstructs before editing (T more rows).
        allow_no_op: Report an edit that changed nothing instead of failing.
        recordings: What to read while the run goes on; the results are in `EditResult.recordings`.
        max_recorded: Bytes that recordings may take; more is refused before the run.

    Raises:
        InputError: A value is out of range or missing; the message says which and what is allowed.
    """

    __eq__ = object.__eq__  # tensors have no one truth, and Sampling's own would compare its fields alone
    __hash__ = object.__hash__

    edits: tuple[Edit, ...]
    source_prompt: str | None = None
    pixels: Tensor | None = None
    x0: Tensor | None = None
    x_T: Tensor | None = None  # noqa: N815  (the papers' symbol)
    mask: Tensor | None = None
    _: KW_ONLY
    inversion: str | None = None
    inversion_settings: Mapping[str, Any] = field(default_factory=dict)
    keep_source: bool = False
    check_reconstruction: bool = True
    allow_no_op: bool = False
    recordings: tuple[Recording, ...] = ()
    max_recorded: int = BUDGET

    def __post_init__(self) -> None:
        if not self.edits:
            raise InputError("a run needs at least one edit", hint="give a target prompt")
        within("the number of edits of one run", len(self.edits), MAX_EDITS, hint="make several runs of it")
        for text in (self.source_prompt or "", *(edit.prompt for edit in self.edits)):
            check_text(text)
        if not self.real and not (self.source_prompt or "").strip():
            raise InputError(
                "a generated source needs a source prompt",
                hint="give --source-prompt, or --image for a real one",
            )
        for edit in self.edits:
            if not edit.prompt.strip():
                raise InputError("a target prompt is empty", hint="say what the edited picture shows")
        super().__post_init__()
        if self.real and self.scheduler != "ddim":
            raise InputError(
                f"a real picture is inverted with DDIM, so the scheduler cannot be {self.scheduler!r}",
                hint=f"leave --scheduler out ({', '.join(SCHEDULERS)} work for generated sources)",
            )
        if self.real and self.x_T is not None:
            raise InputError("a real picture has noise of its own, so x_T cannot be given", hint="leave x_T out")
        if self.inversion_settings and self.inversion is None:
            raise InputError("there are settings for an inversion, but none is named", hint="give --inversion")

    @property
    def real(self) -> bool:
        """Whether the source is a given picture."""
        return self.pixels is not None or self.x0 is not None

    def lane_name(self, index: int) -> str:
        """Return the name of an edit's lane."""
        return self.edits[index].name or f"edit[{index}]"

    def plan_request(self, index: int, mask: Tensor | None = None) -> PlanRequest:
        """Return what the method of an edit sees; `mask` is the request's at the latents' size."""
        edit = self.edits[index]
        return PlanRequest(
            edit.prompt, self.source_prompt, real=self.real, inversion=self.inversion, mask=mask, **vars(self.sampling)
        )


@dataclass(frozen=True, eq=False)
class PlanRequest(Sampling):
    """What one method sees of a run: its own lane's prompts, and how all lanes are sampled (`Sampling`).

    Attributes:
        prompt: Target prompt.
        source_prompt: Source prompt; None when a real picture came without one.
        real: Whether the source is a given picture.
        inversion: Inversion that the user asked for; None leaves the choice to the method.
        mask: Where the source may be changed, bool (h, w) at the latents' size; None: the user gave none.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    prompt: str
    source_prompt: str | None
    _: KW_ONLY
    real: bool
    inversion: str | None = None
    mask: Tensor | None = None
