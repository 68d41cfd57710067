"""What a process needs to work off jobs: model, methods, cases and metrics, loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from attnctl.dataset import Case
from attnctl.errors import AttnctlError, InputError
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest, PlanRequest, Sampling
from attnctl_evaluation.benchmark.plan import choose_cases, folders, noise_seed
from attnctl_evaluation.benchmark.spec import CompareSpec, Entry
from attnctl_evaluation.rows import Failure, Row, Timing

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.method import EditMethod
    from attnctl.model import Model
    from attnctl.modifier import Modifier
    from attnctl.session import EditSession
    from attnctl_evaluation.metrics.protocols import Panel


class EntryRecord(BaseModel):
    """What is known of a method's entry once the model is loaded.

    Attributes:
        folder: Where its pictures go.
        inversion: Inversion that real pictures go through; ``none`` where the run has no real picture.
        asked: Inversion that requests name for it; None leaves it to the method.
        uses_source_prompt: Whether it reads the source prompt.
        settings: All settings of its method, defaults and its preset's included.
        modifiers: All settings of its modifiers, by name.
    """

    model_config = ConfigDict(frozen=True)

    folder: str
    inversion: str
    asked: str | None
    uses_source_prompt: bool | None
    settings: dict[str, Any]
    modifiers: dict[str, dict[str, Any]]


class SetupRecord(BaseModel):
    """What a header says that is known only where the model runs; equal on all workers of a run.

    Attributes:
        model: `attnctl.runs.manifest.ModelRecord` as plain data.
        device: `attnctl.runs.manifest.DeviceRecord` as plain data.
        environment: `attnctl.runs.manifest.EnvironmentRecord` as plain data.
        size: Picture (height, width).
        cards: Metric cards by heading.
        absent: Headings that cannot be measured here, and why.
        entries: Per label.
    """

    model_config = ConfigDict(frozen=True)

    model: dict[str, Any]
    device: dict[str, Any]
    environment: dict[str, Any]
    size: tuple[int, int]
    cards: dict[str, dict[str, Any]]
    absent: dict[str, str]
    entries: dict[str, EntryRecord]


@dataclass(frozen=True)
class JobResult:
    """What came of a job.

    Attributes:
        records: One row per entry.
        timings: Their costs.
        pictures: PNG files by path relative to the run folder.
    """

    records: list[Row]
    timings: list[Timing]
    pictures: dict[str, bytes]


class Setup:
    """Everything that jobs of one comparison share.

    Args:
        spec: The resolved comparison.
        registry: Plugins; None loads them.
        model: The model that `spec` names; None loads it.
        cases: The cases that `spec` chooses; None reads the data set.

    Attributes:
        spec: The comparison.
        registry: Plugins.
        cases: Cases of the run by id.
        session: Runs requests.
        panel: Columns that are measured.
        size: Picture (height, width).

    Raises:
        AttnctlError: Something cannot be loaded.
    """

    def __init__(
        self,
        spec: CompareSpec,
        registry: Registry | None = None,
        *,
        model: Model | None = None,
        cases: Mapping[str, Case] | None = None,
    ) -> None:
        import torch

        from attnctl.loading import load_model
        from attnctl.session import EditSession
        from attnctl_evaluation.metrics.protocols import build_panel

        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self.spec = spec
        self.registry = Registry.load(spec.plugins) if registry is None else registry
        if cases is None:
            dataset = self.registry.make_dataset(spec.dataset, spec.dataset_settings)
            cases = {case.id: case for case in choose_cases(dataset.cases(), spec.edit_types, spec.limit)}
        self.cases: Mapping[str, Case] = cases
        if model is None:
            model = load_model(
                spec.model, revision=spec.revision, dtype=spec.dtype, device=spec.device, config=spec.config
            )
        self.session: EditSession = EditSession(model, self.registry)
        self.size: tuple[int, int] = spec.size or model.default_size
        model.latent_size(self.size)
        device = str(model.device)
        self.panel: Panel = build_panel(spec.metrics, self.registry, settings=spec.metric_settings, device=device)

    @cached_property
    def record(self) -> SetupRecord:
        """What the header says of this process's part."""
        from attnctl.runs.describing import describe_device, describe_model
        from attnctl.runs.manifest import environment

        model = self.session.model
        device = describe_device(model.device, model.dtype).model_dump(mode="json")
        device["kind"] = self.spec.device or model.device.type  # workers that share several GPUs have one each
        return SetupRecord(
            model=describe_model(model).model_dump(mode="json"),
            device=device,
            environment=environment().model_dump(mode="json"),
            size=self.size,
            cards={label: card.as_dict() for label, card in self.panel.cards.items()},
            absent=dict(self.panel.absent),
            entries=self.entries,
        )

    @cached_property
    def card_ids(self) -> Mapping[str, str]:
        """Ids of the metric cards by heading."""
        return {label: card.id for label, card in self.panel.cards.items()}

    @cached_property
    def entries(self) -> dict[str, EntryRecord]:
        """What each entry asks of a real picture, told by its method's own plan."""
        planned = {label: self._planned(label, entry) for label, entry in self.spec.methods.items()}
        names = folders((inversion, label) for label, (inversion, _, _) in planned.items())
        return {
            label: EntryRecord(
                folder=folder,
                inversion=inversion,
                asked=asked,
                uses_source_prompt=reads,
                settings=self.built[label][0].config.model_dump(mode="json"),
                modifiers={n: m.config.model_dump(mode="json") for n, m in self.built[label][1].items()},
            )
            for folder, (label, (inversion, asked, reads)) in zip(names, planned.items(), strict=True)
        }

    @cached_property
    def built(self) -> Mapping[str, tuple[EditMethod, Mapping[str, Modifier]]]:
        """Per entry, its method and its modifiers, validated once for all jobs of this process."""
        make = self.registry
        return {
            label: (
                make.make_method(entry.method, entry.settings, entry.preset),
                {name: make.make_modifier(name, settings) for name, settings in entry.modifiers.items()},
            )
            for label, entry in self.spec.methods.items()
        }

    def request(
        self, labels: list[str], case: Case, seed: int, pixels: Tensor | None, mask: Tensor | None
    ) -> EditRequest:
        """Return the request for some entries, which must ask for the same inversion.

        Args:
            labels: The entries.
            case: The case.
            seed: Seed of the run.
            pixels: The source picture (3, H, W) in [-1, 1]; None generates it.
            mask: Bool (H, W), for entries that are to see it.

        Raises:
            InputError: The case cannot be asked for, for example for want of a prompt.
        """
        spec, first = self.spec, self.spec.methods[labels[0]]
        asked = self.entries[labels[0]].asked if pixels is not None else None
        scheduler = "ddim" if pixels is not None else spec.scheduler
        sampling = Sampling.of(spec, seed=noise_seed(case.seed, seed), size=self.size, scheduler=scheduler)
        return EditRequest(
            tuple(self.edit(label, case) for label in labels),
            source_prompt=case.source_prompt,
            pixels=pixels,
            mask=mask,
            inversion=asked,
            inversion_settings=self._inversion_settings(first, asked),
            check_reconstruction=False,
            allow_no_op=True,  # told apart lane by lane, so that one idle edit does not fail the others
            **vars(sampling),
        )

    def edit(self, label: str, case: Case) -> Edit:
        """Return an entry's lane for a case."""
        method, modifiers = self.built[label]
        fresh = {name: modifier.again() for name, modifier in modifiers.items()}
        return Edit(case.prompt, method.again(), name=label, modifiers=fresh)

    def _inversion_settings(self, entry: Entry, asked: str | None) -> Mapping[str, Any]:
        if asked is None:
            return {}
        return entry.inversion_settings or self.spec.inversion_settings.get(asked, {})

    def _planned(self, label: str, entry: Entry) -> tuple[str, str | None, bool | None]:
        """Return an entry's inversion, the one that requests name for it, and whether it reads the source prompt.

        Raises:
            InputError: The entry asks for an inversion that its method cannot work with.
        """
        wanted = entry.inversion or self.spec.inversion
        from attnctl.engine.planning import model_view

        method = self.built[label][0].again()
        if not any(case.real for case in self.cases.values()):
            return "none", None, True  # what is generated is generated from it
        view = model_view(self.session.model, self.session.model.latent_size(self.size))
        for case in (case for case in self.cases.values() if case.real):
            try:
                plan = method.plan(self._look(case, wanted), view)
            except (Exception, SystemExit):  # noqa: S112  (a stranger's method; another case's prompts may suit it)
                continue
            if plan.inversion is None:
                break
            name, refused = plan.inversion.name, wanted is not None and plan.inversion.name != wanted
            if refused and entry.inversion is not None:
                raise InputError(
                    f"{entry.method} works with the inversion {name} alone, not with {wanted}",
                    hint=f"leave the inversion of {label} out",
                )
            texts = (plan.source.prompt, plan.inversion.prompt, *(text for text, _ in plan.text if text != case.prompt))
            return name, None if refused else wanted, method.needs_source_prompt or any(t.strip() for t in texts)
        return wanted or "none", wanted, method.needs_source_prompt or None

    def _look(self, case: Case, inversion: str | None) -> PlanRequest:
        sampling = Sampling.of(self.spec, size=self.size, scheduler="ddim")
        return PlanRequest(case.prompt, case.source_prompt, real=True, inversion=inversion, **vars(sampling))


def failure_of(error: BaseException) -> Failure:
    """Return an exception as a row keeps it: one line, the same in every run."""
    import re

    from attnctl.terminal import one_line, shorten

    if isinstance(error, AttnctlError):
        text, hint = error.message, error.hint
    else:
        text, hint = str(error), ""
    text = re.sub(r"\b0x[0-9a-fA-F]{4,}", "0x...", one_line(text))  # addresses differ from run to run
    return Failure(kind=type(error).__name__, message=shorten(text or type(error).__name__, 500), hint=one_line(hint))
