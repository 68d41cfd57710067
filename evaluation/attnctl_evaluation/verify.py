"""Does a run reproduce? What its record says was asked for, done again; the whole record held against the new one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnctl.errors import InputError
from attnctl.files import reason, sha256_of_file, shown
from attnctl_evaluation.record_differences import record_differences

if TYPE_CHECKING:
    from attnctl.registry import Registry
    from attnctl.runs.carrying import Inputs
    from attnctl.runs.manifest import FileRecord, Manifest

TOLERANCE = 40.0
"""PSNR in dB from which two pictures count as the same but for rounding; other hardware stays well above it."""

SHEET = "[side-by-side]"
"""What a run calls the sheet of all pictures; the brackets tell files from lanes."""

Outcome = Literal["identical", "close", "different", "missing"]


@dataclass(frozen=True)
class Comparison:
    """One picture, recorded and made again.

    Attributes:
        name: Which it is: a lane, or a row of a comparison.
        outcome: ``identical``: every pixel is equal; ``close``: at least the tolerance; ``different``; ``missing``:
            one of the two does not exist.
        psnr: Peak signal-to-noise ratio in dB between the two, pixel values of 255 levels; None for identical ones.
        largest: Largest difference of a pixel in levels of 255; None where one is missing.
        note: What else there is to say.
    """

    name: str
    outcome: Outcome
    psnr: float | None = None
    largest: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of verifying a run.

    Attributes:
        run: The run's folder.
        tolerance: PSNR in dB from which pictures count as close.
        pictures: One comparison per picture that was made again.
        record: Where the record differs from that of the run that was made again, as sentences.
        scores: Scores that differ, as sentences; for comparisons.
        damaged: Files that are not what the record says, as sentences; they were changed after the run.
        environment: What differs between then and now, as sentences.
        skipped: How many rows were left out, when only a sample was asked for.
    """

    run: str
    tolerance: float
    pictures: list[Comparison]
    record: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def outcome(self) -> Literal["identical", "close", "different"]:
        """The worst of all pictures; differing records or scores, damaged files, and no pictures are different."""
        faults = bool(self.record or self.scores or self.damaged or not self.compared)
        if faults or any(p.outcome in ("different", "missing") for p in self.pictures):
            return "different"
        return "close" if any(p.outcome == "close" for p in self.pictures) else "identical"

    @property
    def compared(self) -> int:
        """How many pictures were held against one another; a row that failed then and now has none."""
        return sum(picture.largest is not None for picture in self.pictures)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {"outcome": self.outcome, "compared": self.compared, **asdict(self)}


def compare_pictures(name: str, recorded: Path, again: Path, tolerance: float) -> Comparison:
    """Compare two picture files pixel by pixel.

    Args:
        name: What to call it.
        recorded: The run's own picture.
        again: The one that was made again.
        tolerance: PSNR in dB from which they count as close.
    """
    import numpy as np

    from attnctl.runs.decode import decode_stored, regular_file

    both = []
    for path, which in ((recorded, "the run's picture"), (again, "the picture made again")):
        try:
            image, _ = decode_stored(regular_file(path))  # bounded, and of the formats that pictures have here
            both.append(np.asarray(image.convert("RGB"), dtype=np.int16))
        except InputError as error:
            return Comparison(name, "missing", note=f"{which} cannot be read: {error.message}")
    a, b = both
    if a.shape != b.shape:
        return Comparison(name, "different", note=f"{a.shape[1]}x{a.shape[0]} pixels became {b.shape[1]}x{b.shape[0]}")
    difference = np.abs(a - b)
    largest = int(difference.max(initial=0))
    if largest == 0:
        return Comparison(name, "identical", largest=0)
    psnr = 10 * math.log10(255**2 / float((difference.astype(np.float64) ** 2).mean()))
    return Comparison(name, "close" if psnr >= tolerance else "different", round(psnr, 2), largest)


def environment_differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say what differs between two environments, devices or models, as ``torch: 2.14.1 then, 2.15.0 now``.

    Args:
        then: Plain data of the record; nested mappings are gone through.
        now: The same of this machine.
        prefix: What the names are under.
    """
    found = []
    for name in [*then, *(n for n in now if n not in then)]:
        before, after = then.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = "" if name in ("environment", "packages") else f"{prefix}{name} "
            found += environment_differences(before, after, inner)
        elif before != after:
            found.append(f"{prefix}{name}: {_or_none(before)} then, {_or_none(after)} now")
    return found


def _or_none(value: Any) -> str:
    return "none" if value in (None, "", {}, []) else str(value)


@dataclass(frozen=True)
class Replacements:
    """What stands in for things that lie elsewhere on this machine.

    Attributes:
        model: Model to use instead of the recorded name.
        image: The real picture.
        mask: The mask.
        device: Device to run on.
        plugins: Plugin files; those of the record are not loaded unless they are named again, since that runs code.
    """

    model: str | None = None
    image: str | None = None
    mask: str | None = None
    device: str | None = None
    plugins: tuple[str, ...] = ()


def check_plugins(recorded: Iterable[str], replaced: Replacements, whose: str) -> None:
    """Refuse to execute plugin files that only the record names.

    Args:
        recorded: Plugin files that the record names, which may lie elsewhere here.
        replaced: What lies elsewhere on this machine.
        whose: What used them, for the message: ``run``.

    Raises:
        InputError: One was not named again.
    """
    given = {Path(path).name for path in replaced.plugins}
    for name in recorded:
        if Path(name).name not in given:
            raise InputError(
                f"the {whose} used the plugin file {shown(name)}, which verifying would execute",
                hint=f"look at it, then add --plugin {Path(name).name}",
            )


def _plugins_of(manifest: Manifest) -> list[str]:
    recorded = [] if manifest.request is None else [plugin.name for plugin in manifest.request.plugins]
    words = list(manifest.volatile.command)
    return recorded + [Path(words[i + 1]).name for i, word in enumerate(words[:-1]) if word == "--plugin"]


def local_model(manifest: Manifest, replaced: Replacements) -> str:
    """Return the model to run: the user's, or the record's where it lies on this machine already.

    A model of the hub is given as its folder here, since by its name the network would be asked for news of it.

    Raises:
        InputError: The record names a model that would have to be fetched.
    """
    if replaced.model is not None:
        return replaced.model
    return name_here(manifest.model.id, manifest.model.commit or manifest.model.revision)


def name_here(name: str, revision: str | None) -> str:
    """Return what to load a recorded model by without asking the network.

    Args:
        name: The model, as a record names it.
        revision: Branch, tag or commit of a hub model.

    Raises:
        InputError: It is not on this machine.
    """
    from attnctl.families.hubcache import hub_snapshot
    from attnctl.loading import locate

    location, _ = locate(name)
    if location is not None:
        return name
    snapshot = hub_snapshot(name, revision)
    if snapshot is None:
        raise InputError(
            f"the record names the model {shown(name)}, which is not on this machine",
            hint="say with --model which model to use; nothing is fetched because a record names it",
        )
    return str(snapshot)


def find_inputs(manifest: Manifest, replaced: Replacements) -> tuple[dict[str, str | None], list[str]]:
    """Find the files that the run read; one that only the record names must be that very file.

    Returns:
        Paths by ``image`` and ``mask``, and sentences about files that are others than the run's.

    Raises:
        InputError: One cannot be found.
    """
    from attnctl.runs.decode import regular_file

    paths: dict[str, str | None] = {"image": None, "mask": None}
    notes = []
    for record, name in ((manifest.input_picture, "image"), (manifest.mask, "mask")):
        if record is None:
            continue
        given = getattr(replaced, name)
        path = Path(given or record.path)
        hint = f"say with --{name} where it lies on this machine"
        try:
            digest = sha256_of_file(regular_file(path))
        except InputError as error:
            raise InputError(f"the run's {name} {shown(path)} cannot be read: {error.message}", hint=hint) from error
        except OSError as error:
            raise InputError(f"the run's {name} {shown(path)} cannot be read: {reason(error)}", hint=hint) from error
        if digest != record.sha256 and given is None:
            raise InputError(f"the run's {name} {shown(path)} is another file by now", hint=hint)
        if digest != record.sha256:
            notes.append(f"{name}: {path.name} is another file than the run's")
        paths[name] = str(path)
    return paths, notes


def run_again(manifest: Manifest, replaced: Replacements, registry: Registry, out: Path) -> tuple[Manifest, list[str]]:
    """Do again what a record says was asked for, in a folder of its own.

    Args:
        manifest: The record.
        replaced: What lies elsewhere on this machine.
        registry: Plugins, with the files that the user named.
        out: An empty or missing folder for the pictures.

    Returns:
        The new record, and sentences about inputs that are others than the run's.

    Raises:
        AttnctlError: The run cannot be carried out here.
    """
    from attnctl.loading import load_model
    from attnctl.runs.carrying import build_request, carry_out, read_inputs
    from attnctl.runs.output import RunOutput

    paths, notes = find_inputs(manifest, replaced)
    model = load_model(
        local_model(manifest, replaced),
        revision=manifest.model.revision if replaced.model is None else None,
        dtype=manifest.device.dtype,
        device=replaced.device or _device_here(manifest.device.kind),
    )
    picture, mask = manifest.input_picture, manifest.mask
    inputs: Inputs = read_inputs(
        model,
        manifest.settings.size,
        picture=paths["image"],
        mask=paths["mask"],
        fit="crop" if picture is None else picture.fit,
        mask_fit=None if mask is None else mask.fit,
    )
    request = build_request(manifest, inputs)
    output = RunOutput(str(out), label="again", seed=request.seed, force=True)
    return carry_out(request, model, registry, output, inputs).manifest, notes


def _device_here(kind: str) -> str | None:
    """Return the recorded device if this machine has it; None picks the best there is."""
    from attnctl.loading import pick_device

    try:
        pick_device(kind)
    except InputError:
        return None
    return kind


def verify_run(folder: Path, replaced: Replacements, tolerance: float, out: Path) -> Verdict:
    """Run again what a record holds, and compare every picture and the whole record.

    Args:
        folder: The run's folder, with its ``manifest.json``.
        replaced: What lies elsewhere on this machine.
        tolerance: PSNR in dB from which pictures count as close.
        out: An empty or missing folder for the pictures made again.

    Raises:
        AttnctlError: The record is damaged or empty, or the run cannot be carried out here.
    """
    from attnctl.registry import Registry
    from attnctl.runs.manifest import Manifest
    from attnctl_evaluation.integrity import damaged_files, damaged_record

    manifest = Manifest.read(folder / "manifest.json")
    if not any(lane.role == "edit" for lane in manifest.lanes) or not _pictures_of(manifest):
        raise InputError(
            f"{shown(folder)} holds a record without an edit or without pictures, so there is nothing to verify",
            hint="it was changed after the run, or its run never ended",
        )
    check_plugins(_plugins_of(manifest), replaced, "run")
    registry = Registry.load(list(replaced.plugins))
    named = {f"lane {i}": lane.picture for i, lane in enumerate(manifest.lanes) if lane.picture is not None}
    damaged = [*damaged_record(folder), *damaged_files(folder, {**named, **manifest.files})]
    again, notes = run_again(manifest, replaced, registry, out)
    made = _pictures_of(again) | _others_of(again)
    wanted = _pictures_of(manifest) | _others_of(manifest)
    if manifest.environment.packages.get("pillow") != again.environment.packages.get("pillow"):
        wanted.pop(SHEET, None)  # its labels are drawn by Pillow, whose letters differ from version to version
    pictures = [_compare_file(name, folder, record, out, made.get(name), tolerance) for name, record in wanted.items()]
    exact = all(picture.outcome == "identical" for picture in pictures)
    # By --model, or because the hub's model is loaded by its folder here.
    renamed = replaced.model is not None or again.model.id != manifest.model.id
    lines = record_differences(manifest, again, exact=exact, other_model=renamed)
    differences = environment_differences(environment_of(manifest), environment_of(again))
    notes += _lacking(manifest)
    return Verdict(str(folder), tolerance, pictures, lines, [], damaged, [*notes, *differences])


def _compare_file(
    name: str, folder: Path, record: FileRecord, out: Path, made: FileRecord | None, tolerance: float
) -> Comparison:
    """Compare one picture of a record, if it lies in the run's folder, with the one that was made again."""
    if made is None:
        return Comparison(name, "missing", note="the run now makes no such picture")
    path = folder / record.file
    if Path(record.file).name != record.file or path.is_symlink():
        return Comparison(name, "missing", note="the record names a picture outside of the run's folder")
    return compare_pictures(name, path, out / made.file, tolerance)


def _lacking(manifest: Manifest) -> list[str]:
    """Say what could not be made again or looked at because the record does not hold it."""
    found = []
    if manifest.request is None:
        found.append(
            "the record is of schema 1, which holds no digest of its own, and not what was asked for: presets, "
            "max_rows, keep_source and the inversion were taken from what came of the run"
        )
    if "recordings" in manifest.files:
        found.append("recordings were not made again; their file was checked by its digest")
    return found


def environment_of(manifest: Manifest) -> dict[str, Any]:
    """Return what of a manifest may differ by machine and can explain a difference."""
    return {
        "environment": manifest.environment.model_dump(mode="json"),
        "device": manifest.device.model_dump(mode="json"),
    }


def _pictures_of(manifest: Manifest) -> dict[str, FileRecord]:
    return {lane.name: lane.picture for lane in manifest.lanes if lane.picture is not None}


def _others_of(manifest: Manifest) -> dict[str, FileRecord]:
    """Return the pictures of a run that are no lane's: the sheet, and what inversions reconstruct."""
    return {f"[{name}]": record for name, record in manifest.files.items() if record.file.endswith(".png")}


def worst_first(pictures: Sequence[Comparison]) -> list[Comparison]:
    """Sort comparisons so that what needs a look comes first."""
    order = {"missing": 0, "different": 1, "close": 2, "identical": 3}
    return sorted(pictures, key=lambda p: (order[p.outcome], p.psnr if p.psnr is not None else math.inf, p.name))
