"""Reports as Markdown, for a README or an issue, and as LaTeX tables, for a paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from attnctl.terminal import visible
from attnctl_evaluation.report.contents import Contents, status_line
from attnctl_evaluation.report.numbers import MINUS, count, memory, number, seconds, span
from attnctl_evaluation.report.text import clean, latex, markdown
from attnctl_evaluation.statistics import MARK_RULE, Cell, Summary

_ARROWS = {"higher": " \u2191", "lower": " \u2193", "neither": ""}
_LATEX_ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neither": ""}


def render_markdown(contents: Contents) -> str:
    """Return the tables of a report as Markdown; the pictures are only in the HTML report."""
    parts = [
        f"# {markdown(contents.title)}", markdown(contents.lead), *_verdicts(contents),
        "## Means", _table(*_means(contents)),
        "Means with 95 % bootstrap intervals over cases; **best** bold, *second* italic. " + markdown(MARK_RULE),
        *_types(contents), *_fairness(contents), *_failures(contents), *_provenance(contents), *_citations(contents),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], first: int = 1) -> str:
    """A table of cells that are Markdown already; all but the `first` columns are set flush right."""
    rule = [" --- " if place < first else " ---: " for place in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join("|" + "|".join(c if c in rule else f" {c} " for c in line) + "|" for line in lines)


def _means(contents: Contents) -> tuple[list[str], list[list[str]]]:
    summary = contents.summary
    head = [
        "method",
        *(f"{markdown(c)}{_ARROWS[summary.better[c]]}" for c in summary.columns),
        "time",
        "peak memory",
        "pictures",
    ]
    rows = []
    for method in summary.methods:
        cost, counts = contents.costs[method], summary.rows[method]
        cells = [_cell(summary.cells[method, c], contents.places[c]) for c in summary.columns]
        note = status_line(counts)
        rows.append([
            markdown(method), *cells, seconds(cost.seconds.mean if cost.seconds else None),
            memory(cost.peak_memory_bytes), f"{counts.ok}{f' ({note})' if note else ''}",
        ])  # fmt: skip
    return head, rows


def _cell(cell: Cell, places: int) -> str:
    if cell.interval is None:
        return "\u2013"
    mean = number(cell.interval.mean, places)
    marked = {"best": f"**{mean}**", "second": f"*{mean}*", "": mean}[cell.mark]
    return f"{marked} {span(cell.interval, places)}".strip()


def _verdicts(contents: Contents) -> Iterator[str]:
    lines = [
        f"- {markdown(v.column)}: {', '.join(map(markdown, v.best))}"
        + (f"; then {', '.join(map(markdown, v.second))}" if v.second else "")
        if v.best
        else f"- {markdown(v.column)}: {v.why}"
        for v in contents.verdicts
    ]
    if lines:
        yield "## Which method wins at what"
        yield "\n".join(lines)


def _types(contents: Contents) -> Iterator[str]:
    if len(contents.parts) < 2:
        return
    yield "## By edit type"
    for column in contents.summary.columns:
        rows = [
            [markdown(name), *(_cell(part.cells[m, column], contents.places[column]) for m in part.methods)]
            for name, part in contents.parts.items()
        ]
        yield f"{markdown(column)}{_ARROWS[contents.summary.better[column]]}"
        yield _table(["edit type", *map(markdown, contents.summary.methods)], rows)


def _fairness(contents: Contents) -> Iterator[str]:
    yield "## Is the comparison fair?"
    if contents.fairness:
        yield "\n".join(f"- {markdown(sentence)}" for sentence in contents.fairness)
    words = {None: "unknown", True: "yes", False: "no"}
    rows = []
    for m in contents.methods:
        rows_of = contents.costs[m.label].denoiser_rows
        rows.append([
            markdown(m.label), markdown(m.method or "other code"), markdown(m.preset or "\u2013"),
            markdown(m.inversion), words[m.uses_source_prompt], words[m.uses_mask],
            "\u2013" if rows_of is None else number(rows_of, 0),
        ])  # fmt: skip
    head = ["method", "registered as", "preset", "inversion", "source prompt", "mask", "denoiser rows"]
    yield _table(head, rows, first=6)


def _failures(contents: Contents) -> Iterator[str]:
    yield "## Failures"
    lines = []
    for group in contents.failures:
        by = ", ".join(f"{markdown(label)} {n}" for label, n in group.methods.items())
        cases = ", ".join(dict.fromkeys(markdown(case) for _, case, _ in group.rows))
        kind = f"{markdown(group.kind)}: " if group.kind else ""
        lines.append(f"- {count(len(group.rows), 'row')} ({by}): {kind}{markdown(group.message)} (cases: {cases})")
    lines += [
        f"- no source picture: {markdown(case)} {markdown(why)}".rstrip() for case, why in contents.missing.items()
    ]
    pending = sum(counts.pending for counts in contents.summary.rows.values())
    if pending:
        lines.append(f"- {count(pending, 'row is', 'rows are')} not in the records: the run was not finished")
    yield "\n".join(lines) or "Every row has a picture."
    absent = contents.joined.results.header.absent
    notes = [f"- {markdown(name)}: {markdown(why)}" for name, why in absent.items()]
    notes += [f"- {markdown(gap)}" for gap in contents.gaps]
    if notes:
        yield "### Missing numbers"
        yield "\n".join(notes)


def _provenance(contents: Contents) -> Iterator[str]:
    yield "## Provenance"
    for run in contents.joined.runs:
        h = run.header
        facts = [
            ("run", run.name), ("data set", f"{h.dataset.spec}, {h.dataset.fingerprint}"),
            ("model", " ".join(str(h.model[k]) for k in ("id", "revision", "commit", "sha256") if h.model.get(k))),
            ("settings", ", ".join(f"{k} = {v}" for k, v in h.settings.items() if v not in ("", None))),
            ("seeds", ", ".join(map(str, h.seeds))),
            ("device", ", ".join(f"{k} = {v}" for k, v in h.device.items() if v is not None)),
            ("attnctl", str(h.environment.get("attnctl", ""))),
        ]  # fmt: skip
        yield "\n".join(f"- {name}: {markdown(value)}" for name, value in facts if value)
    cards = contents.cards
    ids = [f"- {markdown(c)}: {markdown(str(cards.get(c, {}).get('id', 'no card')))}" for c in contents.summary.columns]
    if ids:
        yield "### Metric cards"
        yield "\n".join(ids)


def _citations(contents: Contents) -> Iterator[str]:
    if contents.citations:
        yield "## Citations"
        # An indented block has no end mark that an entry could hold.
        yield "\n\n".join(_indented(c.bibtex) for c in contents.citations)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in visible(clean(text)).splitlines() if line.strip())


def render_latex(contents: Contents) -> str:
    """Return the table of means and one table per column by edit type, for a document that loads ``booktabs``."""
    summary = contents.summary
    parts = [
        "% Needs \\usepackage{booktabs}; for names outside Latin script a Unicode engine such as LuaLaTeX.",
        *(f"% {line}" for line in visible(clean(contents.title)).splitlines()),
        _latex_table(
            _caption(contents, "Means with 95\\,\\% bootstrap intervals over cases"), "tab:means",
            ["method", *(f"{latex(c)}{_LATEX_ARROWS[summary.better[c]]}" for c in summary.columns)],
            [_latex_rows(latex(m), summary, m, summary.columns, contents) for m in summary.methods],
        ),
    ]  # fmt: skip
    for place, column in enumerate(summary.columns if len(contents.parts) > 1 else ()):
        rows = [
            f"{latex(name)} & " + " & ".join(_latex_mean(part.cells[m, column], contents, column) for m in part.methods)
            for name, part in contents.parts.items()
        ]
        head = ["edit type", *map(latex, summary.methods)]
        said = _caption(contents, f"{latex(column)}{_LATEX_ARROWS[summary.better[column]]} by edit type")
        parts.append(_latex_table(said, f"tab:types-{place + 1}", head, rows))
    parts += ["\n".join(f"% {line}" for line in visible(clean(c.bibtex)).splitlines()) for c in contents.citations]
    return "\n\n".join(parts) + "\n"


def _caption(contents: Contents, what: str) -> str:
    dataset = contents.joined.results.header.dataset
    cases = f"{latex(dataset.spec)}, {count(dataset.cases, 'case')}".replace("\u202f", r"\,")
    return f"{what} ({cases}). Bold: best; underlined: second. {latex(MARK_RULE)}"


def _latex_table(caption: str, label: str, head: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join([
        r"\begin{table}", r"\centering", f"\\caption{{{caption}}}", f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule",
        *(f"{row} \\\\" for row in rows), r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ])  # fmt: skip


def _latex_rows(name: str, summary: Summary, method: str, columns: Sequence[str], contents: Contents) -> str:
    """A line of means and, below it, a line of intervals."""
    means = [_latex_mean(summary.cells[method, c], contents, c) for c in columns]
    ends = [_latex_span(summary.cells[method, c], contents.places[c]) for c in columns]
    lines = [" & ".join([name, *means])]
    if any(ends):
        lines.append(" & ".join(["", *ends]))
    # The bracket of an interval must not be taken for the optional argument of the line break before it.
    return " \\\\\n".join(lines)


def _latex_mean(cell: Cell, contents: Contents, column: str) -> str:
    if cell.interval is None:
        return "--"
    mean = _latex_number(number(cell.interval.mean, contents.places[column]))
    forms: dict[str, Callable[[str], str]] = {"best": r"\textbf{{{}}}".format, "second": r"\underline{{{}}}".format}
    return forms.get(cell.mark, str)(mean)


def _latex_span(cell: Cell, places: int) -> str:
    found = span(cell.interval, places)
    return f"{{\\scriptsize {_latex_number(found)}}}" if found else ""


def _latex_number(text: str) -> str:
    return text.replace(MINUS, r"$-$")
