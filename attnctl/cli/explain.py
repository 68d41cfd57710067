"""``attnctl explain``: a method's plan as a table, without running it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnctl.cli.requesting import build_methods, check_model, choose_methods, read_extras, wanted_structure
from attnctl.config import shown
from attnctl.example import Example
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest, Sampling, check_text
from attnctl.terminal import facts, plain, quoted, show, show_json, table

if TYPE_CHECKING:
    from attnctl.engine.operation import Bound
    from attnctl.engine.planning import RunPlan
    from attnctl.model import Model
    from attnctl.session import EditSession

SOURCE_PROMPT, PROMPT = "a photo of a cat on a sofa", "a photo of a dog on a sofa"
"""What is planned for where neither the user nor the model says."""


def explain(arguments: Namespace) -> int:
    """Show what a method would do.

    Raises:
        AttnctlError: The method would refuse.
    """
    registry = Registry.load(arguments.plugins)
    request = _request(arguments, registry)
    from attnctl.session import EditSession

    model = wanted_structure(arguments)
    if arguments.real:
        request = _as_real(request, model, arguments.source_prompt)
    session = EditSession(model, registry)
    data = plan_data(session, request, session.plan(request))
    if arguments.json:
        show_json(data)
    else:
        _show(data)
    return 0


def plan_data(session: EditSession, request: EditRequest, plan: RunPlan) -> dict[str, Any]:
    """Return a plan with one edit as plain data."""
    edit = plan.edits[0]
    source = plan.lanes[edit.source]
    model = session.model
    size = model.latent_size(request.size)
    return {
        "method": edit.method.name,
        "preset": edit.method.preset,
        "settings": edit.method.config.model_dump(mode="json"),
        "prompt": plan.lanes[edit.name].prompt,
        "source": {"prompt": source.prompt, "guidance": source.guidance.scale, "pin": source.pin, "real": request.real},
        "model": model.name,
        "latent_size": list(size),
        "steps": request.steps,
        "guidance": plan.lanes[edit.name].guidance.scale,
        "inversion": _inversion(plan, edit.source),
        "controllers": [_controller(bound, size) for bound in edit.bounds],
        "rows": _rows(session, request, plan),
        "notes": list(edit.plan.notes),
    }


def _request(arguments: Namespace, registry: Registry) -> EditRequest:
    (name,) = choose_methods([arguments.method], registry)
    check_model(arguments)
    example = Example.of(arguments.model)
    prompt = example.prompt or PROMPT if arguments.prompt is None else arguments.prompt
    source = example.source_prompt or SOURCE_PROMPT if arguments.source_prompt is None else arguments.source_prompt
    for text in (prompt, source):
        check_text(text)
    extras = read_extras(arguments, [name], registry)
    methods, _ = build_methods(extras, [name], example, registry)
    return EditRequest(
        (Edit(prompt, methods[name], name=name, modifiers=extras.modifiers),),
        source_prompt=source,
        inversion=arguments.inversion,
        inversion_settings=extras.inversion,
        **vars(example.fill(Sampling.of(arguments))),
    )


def _as_real(request: EditRequest, model: Model, source: str | None) -> EditRequest:
    """Plan for a real picture: empty latents take its place. Its source prompt is the one given, or none."""
    import torch

    latents = torch.zeros((1, model.latent_channels, *model.latent_size(request.size)))
    return replace(request, x0=latents, source_prompt=source)


def _inversion(plan: RunPlan, source: str) -> dict[str, Any] | None:
    spec = plan.inversions.get(source)
    return None if spec is None else {"name": spec.name, "prompt": spec.prompt, "options": dict(spec.options)}


def _controller(bound: Bound, size: tuple[int, int]) -> dict[str, Any]:
    from attnctl.sites import describe_sites
    from attnctl.steps import compact_range

    return {
        "name": bound.controller.name,
        "kind": bound.controller.where.what if bound.controller.where is not None else "latents",
        "selector": str(bound.controller.where) if bound.controller.where is not None else "",
        "sites": describe_sites(bound.sites, size) if bound.sites else "",
        "steps": compact_range(bound.steps),
        "halves": list(bound.controller.passes),
        "expression": bound.controller.describe(),
        "expected": bound.expected,
        "paths": [site.path for site in bound.sites],
    }


def _rows(session: EditSession, request: EditRequest, plan: RunPlan) -> dict[str, int | None]:
    """Return the denoiser rows by stage; None where an inversion cannot tell."""
    rows: dict[str, int | None] = {}
    counts = [session.registry.make_inversion(spec).rows(request.steps) for spec in plan.inversions.values()]
    if counts:
        known = [n for n in counts if n is not None]
        rows["inversion"] = sum(known) if len(known) == len(counts) else None
    rows["edit"] = session.edit_rows(request, plan)
    return rows


def _show(data: dict[str, Any]) -> None:
    settings = " ".join(f"{name}={shown(value)}" for name, value in data["settings"].items())
    height, width = data["latent_size"]
    source, inversion = data["source"], data["inversion"]
    about = [
        ("method", data["method"] + (f" (preset {data['preset']})" if data["preset"] else "")),
        ("settings", settings or "none"),
        ("model", f"{data['model']}, latents {height}x{width}, {data['steps']} steps, guidance {data['guidance']:g}"),
        ("source", _source_line(source)),
        ("edit", quoted(data["prompt"], 90)),
    ]
    if inversion is not None:
        about.append(("inversion", f"{inversion['name']} under {quoted(inversion['prompt'], 90)}"))
    about.append(("denoiser rows", _rows_line(data["rows"])))
    about += [("note", text) for text in data["notes"]]
    show(facts(about), plain(""))
    if not data["controllers"]:
        show(plain("It controls nothing: the target prompt alone decides."))
        return
    rows = [
        (c["name"], c["kind"], c["sites"], c["steps"], "+".join(c["halves"]), c["expression"], c["expected"])
        for c in data["controllers"]
    ]
    columns = ("controller", "kind", "sites", "steps", "halves", "what happens", "places")
    show(table(columns, rows, right=("places",)))


def _source_line(source: dict[str, Any]) -> str:
    kind = "a real picture" if source["real"] else "drawn"
    prompt = f", {quoted(source['prompt'], 90)}" if source["prompt"] else ", without a prompt"
    follows = {"none": "", "start": ", put back on the inverted path before every step"}
    follows["end"] = ", put back on the inverted path after every step"
    return f"{kind}{prompt}{follows[source['pin']]}"


def _rows_line(rows: dict[str, int | None]) -> str:
    parts = ", ".join(f"{stage} {'not known before' if n is None else n}" for stage, n in rows.items())
    known = [n for n in rows.values() if n is not None]
    return f"{sum(known)}: {parts}" if len(rows) > 1 and len(known) == len(rows) else parts
