"""What a run says at its end: where its files are, what was changed where, what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnctl.cli.progress import inversion_line
from attnctl.terminal import facts, plain, quoted, show, show_json, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from attnctl.errors import AttnctlError
    from attnctl.result import CoverageRow, EditResult
    from attnctl.runs.output import RunOutput


def show_run(output: RunOutput, result: EditResult, fault: AttnctlError | None, *, as_json: bool) -> None:
    """Write the summary to stdout, as tables or as one JSON object."""
    if as_json:
        show_json(run_data(output, fault))
        return
    parts: list[RenderableType] = [lanes_table(output, result), plain("")]
    if result.coverage:
        parts += [plain("What was changed where:"), coverage_table(result), plain("")]
    parts.append(facts(cost_facts(result)))
    parts.append(plain(f"\nwritten to {output.folder.path}"))
    show(*parts)


def run_data(output: RunOutput, fault: AttnctlError | None) -> dict[str, Any]:
    """Return the summary as plain data: the folder, its record, how far every edit moved, and the error if any."""
    assert output.manifest is not None  # this is called after writing
    return {
        "folder": str(output.folder.path),
        "error": None if fault is None else {"message": fault.message, "hint": fault.hint},
        "changes": output.changes,
        "manifest": output.manifest.model_dump(mode="json"),
    }


def lanes_table(output: RunOutput, result: EditResult) -> RenderableType:
    """Lay out the lanes: name, prompt, picture, and the mean absolute change against the source."""
    assert output.manifest is not None  # this is called after writing
    files = {lane.name: lane.picture.file for lane in output.manifest.lanes if lane.picture is not None}
    rows = [
        (
            lane.name,
            quoted(lane.prompt, 70) if lane.prompt else "",
            files.get(lane.name, ""),
            "" if lane.role == "source" else f"{output.changes[lane.name]:.1f}",
        )
        for lane in result.lanes
    ]
    return table(("lane", "prompt", "picture", "change (of 255)"), rows, right=("change (of 255)",))


def coverage_table(result: EditResult) -> RenderableType:
    """Lay out the coverage: per controller its sites, steps, and the places where it acted."""
    rows = [
        (row.lane, row.controller, row.sites or "", row.steps, f"{row.acted}/{row.expected}", _changed(row))
        for row in result.coverage
    ]
    right = ("sites", "steps", "acted/expected")
    return table(("lane", "controller", "sites", "steps", "acted/expected", "changed"), rows, right=right)


def cost_facts(result: EditResult) -> list[tuple[str, str]]:
    """Say what inversions reached and what the run cost, in names and values."""
    found = [("inversion", inversion_line(report).removeprefix("inversion ")) for report in result.inversions]
    rows = ", ".join(f"{stage} {n}" for stage, n in result.rows.items())
    total = sum(result.rows.values())
    found.append(("denoiser rows", f"{total}" if len(result.rows) == 1 else f"{total}: {rows}"))
    seconds = ", ".join(f"{stage} {s:.1f} s" for stage, s in result.seconds.items())
    found.append(("time", f"{sum(result.seconds.values()):.1f} s: {seconds}"))
    if result.peak_memory:
        found.append(("peak memory", f"{result.peak_memory / 2**20:.0f} MiB"))
    return found


def _changed(row: CoverageRow) -> str:
    if row.changed is None:
        return "observes"
    if not row.expected:
        return "nothing to do"
    return "yes" if row.changed else "no"
