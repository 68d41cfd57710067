"""What all rows of a comparison share, put together from what was asked for and what the workers found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attnctl.dataset import Case, Dataset
from attnctl.registry import Registry
from attnctl_evaluation.benchmark.setup import SetupRecord
from attnctl_evaluation.benchmark.spec import CompareSpec
from attnctl_evaluation.rows import DatasetEntry, Header, MethodEntry


def make_header(
    spec: CompareSpec, registry: Registry, dataset: Dataset, cases: Sequence[Case], record: SetupRecord
) -> Header:
    """Return the header of a run.

    Args:
        spec: The resolved comparison.
        registry: Where the methods come from.
        dataset: The data set.
        cases: The cases of the whole run.
        record: What the workers found.
    """
    plain = spec.plain()
    return Header(
        title=spec.title or f"{', '.join(spec.methods)} on {spec.dataset}",
        dataset=describe_dataset(spec.dataset, dataset, cases),
        methods=[_method(label, spec, registry, record) for label in spec.methods],
        baseline=spec.baseline_label,
        seeds=list(spec.seeds),
        columns=list(record.cards),
        cards=record.cards,
        absent=record.absent,
        settings={
            "steps": spec.steps,
            "guidance": spec.guidance,
            "size": list(record.size),
            "scheduler": spec.scheduler,
            "negative_prompt": spec.negative_prompt,
        },
        model=record.model,
        environment=record.environment,
        device=record.device,
        config=plain,
    )


def describe_dataset(named: str, dataset: Dataset, cases: Sequence[Case]) -> DatasetEntry:
    """Return what a header says of a data set.

    Args:
        named: As it was asked for.
        dataset: The data set.
        cases: The cases of the run.
    """
    return DatasetEntry(
        spec=named,
        name=dataset.name,
        settings=dataset.config.model_dump(mode="json"),
        fingerprint=dataset.fingerprint(),
        cases=len(cases),
        edit_types=dict(Counter(case.edit_type for case in cases)),
        missing=sum(bool(case.missing) for case in cases),
        paper=dataset.paper,
        bibtex=dataset.bibtex,
    )


def _method(label: str, spec: CompareSpec, registry: Registry, record: SetupRecord) -> MethodEntry:
    entry, found = spec.methods[label], record.entries[label]
    kind = registry.method(entry.method)
    return MethodEntry(
        label=label,
        folder=found.folder,
        method=entry.method,
        preset=entry.preset,
        settings=found.settings,
        modifiers={**found.modifiers},
        inversion=found.inversion,
        uses_source_prompt=found.uses_source_prompt,
        uses_mask=entry.mask,
        summary=kind.summary,
        paper=kind.paper,
        bibtex=kind.bibtex,
    )
