"""Does a run reproduce? What was recorded, done again and held against the record."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnctl.errors import InputError
from attnctl.files import reason, sha256_of_file, shown

if TYPE_CHECKING:
    from attnctl.runs.manifest import FileRecord, Manifest

TOLERANCE = 40.0
"""PSNR in dB from which two pictures count as the same but for rounding; other hardware stays well above it."""

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
        scores: Scores that differ, as sentences; for comparisons.
        damaged: Files that are not what the record says, as sentences; they were changed after the run.
        environment: What differs between then and now, as sentences.
        skipped: How many rows were left out, when only a sample was asked for.
    """

    run: str
    tolerance: float
    pictures: list[Comparison]
    scores: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def outcome(self) -> Literal["identical", "close", "different"]:
        """The worst of all pictures; differing scores or damaged files count as different."""
        if self.scores or self.damaged or any(p.outcome in ("different", "missing") for p in self.pictures):
            return "different"
        return "close" if any(p.outcome == "close" for p in self.pictures) else "identical"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {"outcome": self.outcome, **asdict(self)}


def compare_pictures(name: str, recorded: Path, again: Path, tolerance: float) -> Comparison:
    """Compare two picture files pixel by pixel.

    Args:
        name: What to call it.
        recorded: The run's own picture.
        again: The one that was made again.
        tolerance: PSNR in dB from which they count as close.
    """
    import numpy as np
    from PIL import Image

    both = []
    for path, which in ((recorded, "the run's picture"), (again, "the picture made again")):
        try:
            with Image.open(path) as image:
                both.append(np.asarray(image.convert("RGB"), dtype=np.int16))
        except OSError as error:
            return Comparison(name, "missing", note=f"{which} cannot be read: {reason(error)}")
    a, b = both
    if a.shape != b.shape:
        return Comparison(name, "different", note=f"{a.shape[1]}x{a.shape[0]} pixels became {b.shape[1]}x{b.shape[0]}")
    difference = np.abs(a - b)
    largest = int(difference.max(initial=0))
    if largest == 0:
        return Comparison(name, "identical", largest=0)
    psnr = 10 * math.log10(255**2 / float((difference.astype(np.float64) ** 2).mean()))
    return Comparison(name, "close" if psnr >= tolerance else "different", round(psnr, 2), largest)


def damaged_files(folder: Path, records: Mapping[str, FileRecord]) -> list[str]:
    """Say which files of a run are not what its record says.

    Args:
        folder: The run's folder.
        records: File records by what they are.
    """
    found = []
    for record in records.values():
        path = folder / record.file
        if Path(record.file).name != record.file:  # a record from elsewhere must not make us read other places
            found.append(f"{shown(record.file)} is no file of the run's folder")
        elif not path.is_file():
            found.append(f"{record.file} is not there any more")
        elif sha256_of_file(path) != record.sha256:
            found.append(f"{record.file} was changed after the run")
    return found


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
            found += environment_differences(before, after, "" if name == "packages" else f"{prefix}{name} ")
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


def recorded_arguments(manifest: Manifest, replaced: Replacements, out: Path) -> Namespace:
    """Return the arguments of the run that a manifest records, to be carried out again.

    Raises:
        InputError: The record holds no command of ``attnctl run``, one that cannot be read, or plugin files that were
            not named again.
    """
    from attnctl.cli.parser import build_parser

    _program, *words = manifest.volatile.command or ("",)
    if not words or words[0] != "run":
        raise InputError(
            "the record holds no `attnctl run` command, so it cannot be run again",
            hint="verify folders that `attnctl run` or `attnctl compare` wrote",
        )
    found: Namespace = build_parser().parse_args(words)
    needed = [p for p in found.plugins if Path(p).name not in {Path(given).name for given in replaced.plugins}]
    if needed:
        raise InputError(
            f"the run used the plugin file {shown(needed[0])}, which verifying would execute",
            hint=f"look at it, then add --plugin {Path(needed[0]).name}",
        )
    found.plugins = list(replaced.plugins)
    for name in ("model", "image", "mask", "device"):
        given = getattr(replaced, name)
        if given is not None:
            found.__dict__[name] = given
    # What may differ from call to call without changing a picture.
    found.out, found.force, found.json, found.words = str(out), False, False, ["run"]
    found.no_cache = True
    return found


def check_inputs(manifest: Manifest, arguments: Namespace) -> list[str]:
    """Say which input pictures are not those of the record.

    Raises:
        InputError: One cannot be found.
    """
    found = []
    for record, name in ((manifest.input_picture, "image"), (manifest.mask, "mask")):
        if record is None:
            continue
        path = Path(getattr(arguments, name) or "")
        try:
            digest = sha256_of_file(path)
        except OSError as error:
            raise InputError(
                f"the run's {name} {shown(path)} cannot be read: {reason(error)}",
                hint=f"say with --{name} where it lies on this machine",
            ) from error
        if digest != record.sha256:
            found.append(f"{name}: {path.name} is another file than the run's")
    return found


def environment_of(manifest: Manifest) -> dict[str, Any]:
    """Return what of a manifest can explain a difference, without the machine's paths."""
    model = manifest.model.model_dump(mode="json")
    return {
        "environment": manifest.environment.model_dump(mode="json"),
        "device": manifest.device.model_dump(mode="json"),
        "model": {k: model[k] for k in ("family", "prediction", "sha256")},
    }


def verify_run(folder: Path, replaced: Replacements, tolerance: float, out: Path) -> Verdict:
    """Run again what `attnctl run` recorded, and compare.

    Args:
        folder: The run's folder, with its ``manifest.json``.
        replaced: What lies elsewhere on this machine.
        tolerance: PSNR in dB from which pictures count as close.
        out: An empty or missing folder for the pictures made again.

    Raises:
        AttnctlError: The record is damaged, or the run cannot be carried out here.
    """
    from attnctl.cli.run import carry_out
    from attnctl.runs.manifest import Manifest

    manifest = Manifest.read(folder / "manifest.json")
    arguments = recorded_arguments(manifest, replaced, out)
    inputs = check_inputs(manifest, arguments)
    damaged = damaged_files(folder, _pictures_of(manifest))
    again = carry_out(arguments).output.manifest
    assert again is not None  # written by every run that ends
    made = _pictures_of(again)
    pictures = []
    for name, record in _pictures_of(manifest).items():
        if name in made:
            pictures.append(compare_pictures(name, folder / record.file, out / made[name].file, tolerance))
        else:
            pictures.append(Comparison(name, "missing", note="the run now makes no such picture"))
    differences = environment_differences(environment_of(manifest), environment_of(again))
    return Verdict(str(folder), tolerance, pictures, [], damaged, [*inputs, *_short(differences)])


def _pictures_of(manifest: Manifest) -> dict[str, FileRecord]:
    return {lane.name: lane.picture for lane in manifest.lanes if lane.picture is not None}


def _short(differences: Iterable[str]) -> list[str]:
    """Leave out the words that say from which part of the record a difference is."""
    return [d.removeprefix("environment ") for d in differences]


def worst_first(pictures: Sequence[Comparison]) -> list[Comparison]:
    """Sort comparisons so that what needs a look comes first."""
    order = {"missing": 0, "different": 1, "close": 2, "identical": 3}
    return sorted(pictures, key=lambda p: (order[p.outcome], p.psnr if p.psnr is not None else math.inf, p.name))
