"""The run record: a JSON file beside the pictures that says how they came about, enough to make them again.

Equal runs on one machine give equal records, save for what is under the key ``volatile``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, TypeAdapter, ValidationError, model_validator

from attnctl import __version__
from attnctl.errors import InputError
from attnctl.files import parse_json, read_text, real, reason, sha256_of, sha256_of_file, shown, write_atomic

SCHEMA_VERSION = 2
"""Counts up when a field changes its meaning or goes; `Manifest.read` refuses newer ones."""

STACK = (
    "accelerate",
    "diffusers",
    "numpy",
    "pillow",
    "pluggy",
    "pydantic",
    "safetensors",
    "torch",
    "transformers",
)
"""Distributions whose versions can change a picture or a record."""

_UNUSED_PARTS = {"safety_checker", "feature_extractor", "image_encoder"}
"""Parts of a pipeline that a run never loads."""


def _drawable(value: Any) -> Any:
    """Write lone surrogates, which a command line can hold and JSON cannot, as escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    return _ANYTHING.dump_python(value, mode="json")


_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)

Text = Annotated[str, BeforeValidator(_drawable)]
Settings = Annotated[dict[str, JsonValue], BeforeValidator(_plain)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FileRecord(_Record):
    """A file of the run, named relative to the record's folder."""

    file: Text
    sha256: str


class InputPicture(_Record):
    """A picture that was read, the real one that was edited or a mask, and what was done to it before it was used."""

    path: Text
    sha256: str
    original_size: tuple[int, int]
    fit: str = "crop"
    notes: tuple[Text, ...] = ()


class ModelRecord(_Record):
    """The model: what was asked for, which commit that was, and a fingerprint of its files.

    ``files`` maps relative names to SHA-256; ``sha256`` is `model_fingerprint`.
    """

    id: Text
    revision: str | None = None
    commit: str | None = None
    family: str = ""
    prediction: str = ""
    sha256: str | None = None
    files: dict[str, str] = {}


class DeviceRecord(_Record):
    """Where it ran: ``kind`` is torch's device (``cpu``, ``cuda:0``), ``name`` the hardware's name."""

    kind: str
    name: str = ""
    dtype: str = "float32"
    threads: int | None = None


class EnvironmentRecord(_Record):
    """Versions of what took part; ``packages`` holds None where one is not installed."""

    attnctl: str
    python: str
    platform: str
    machine: str
    packages: dict[str, str | None]


class SettingsRecord(_Record):
    """What all lanes share. Sizes are (height, width) in pixels."""

    seed: int
    steps: int
    guidance: float
    size: tuple[int, int]
    scheduler: str
    scheduler_config: Settings = {}
    negative_prompt: Text = ""


class LaneRecord(_Record):
    """One finished picture: a source, or an edit with its method and its full settings."""

    name: Text
    role: Literal["source", "edit"]
    prompt: Text
    method: str = ""
    preset: str | None = None
    config: Settings = {}
    modifiers: Settings = {}
    picture: FileRecord | None = None


class InversionRecord(_Record):
    """How a real source was inverted; PSNR in dB of its reconstruction, and of the VAE alone."""

    lane: Text
    name: str
    prompt: Text = ""
    psnr: float | None = None
    vae_psnr: float | None = None
    settings: Settings = {}


class CoverageRecord(_Record):
    """Where one controller was to act and where it did; see `attnctl.result.CoverageRow`."""

    lane: Text
    controller: str
    sites: int
    steps: int
    expected: int
    acted: int
    changed: bool | None = None


class EditRecord(_Record):
    """One edit as it was asked for: ``settings`` over ``preset``, before the method's own defaults."""

    name: Text
    prompt: Text
    method: Text
    settings: Settings = {}
    preset: str | None = None
    modifiers: Settings = {}


class PluginFile(_Record):
    """A plugin file that was loaded; its name is for people, nothing is executed because a record names it."""

    name: Text
    sha256: str


class RequestRecord(_Record):
    """What was asked for, field by field as in `attnctl.request.EditRequest`; pictures and masks are named elsewhere.

    ``tensors`` holds, by field name, the SHA-256 of tensors that were given in Python and came from no file; a run
    with any of them cannot be made again from its record.
    """

    edits: tuple[EditRecord, ...]
    source_prompt: Text | None = None
    real: bool = False
    negative_prompt: Text = ""
    steps: int
    guidance: float
    seed: int
    size: tuple[int, int] | None = None
    scheduler: str = "ddim"
    inversion: str | None = None
    inversion_settings: Settings = {}
    max_rows: int | None = None
    keep_source: bool = False
    check_reconstruction: bool = True
    allow_no_op: bool = False
    tensors: dict[str, str] = {}
    plugins: tuple[PluginFile, ...] = ()


class Volatile(_Record):
    """What may differ between two equal runs.

    ``created`` is an ISO 8601 time in UTC, ``seconds`` wall-clock time by stage, ``peak_memory_bytes`` as in
    `attnctl.result.EditResult`. The command is here because it holds paths such as ``--out``.
    """

    created: str = ""
    command: tuple[Text, ...] = ()
    seconds: dict[str, float] = {}
    peak_memory_bytes: int | None = None


class Manifest(_Record):
    """The whole record of one run; ``request`` is None in records of schema 1.

    The file holds one key more, ``digest``: `record_digest` of all the others.
    """

    schema_version: Literal[1, 2] = 2
    environment: EnvironmentRecord
    device: DeviceRecord
    model: ModelRecord
    settings: SettingsRecord
    input_picture: InputPicture | None = None
    mask: InputPicture | None = None
    lanes: tuple[LaneRecord, ...]
    files: dict[str, FileRecord] = {}
    inversions: tuple[InversionRecord, ...] = ()
    coverage: tuple[CoverageRecord, ...] = ()
    rows: dict[str, int] = {}
    warnings: tuple[Text, ...] = ()
    request: RequestRecord | None = None
    volatile: Volatile = Volatile()

    @model_validator(mode="before")
    @classmethod
    def _without_digest(cls, plain: Any) -> Any:
        """The digest is the file's, not the record's: equal records stay equal whether written or not."""
        return {k: v for k, v in plain.items() if k != "digest"} if isinstance(plain, dict) else plain

    def to_json(self) -> str:
        """Return the record as JSON text with a final line break; equal records give equal text."""
        text = self.model_dump_json(indent=2)
        return text.replace("{\n", f'{{\n  "digest": "{record_digest(json.loads(text))}",\n', 1) + "\n"

    def comparable(self) -> dict[str, Any]:
        """Return the record as plain data without ``volatile``: equal for equal runs."""
        plain: dict[str, Any] = json.loads(self.to_json())
        del plain["volatile"], plain["digest"]
        return plain

    def write(self, path: str | os.PathLike[str]) -> str:
        """Write the record atomically and return the SHA-256 of the file.

        Raises:
            InputError: If the place cannot be written to.
        """
        return write_atomic(path, self.to_json().encode("utf-8"))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a record.

        Raises:
            InputError: If there is none, if it is damaged, or if a newer attnctl wrote it.
        """
        hint = "name a manifest.json that `attnctl run` has written"
        try:
            text = read_text(path)
        except InputError as error:
            raise InputError(f"cannot read the run record: {error.message}", hint=hint) from error
        try:
            plain = parse_json(text, shown(path))
        except InputError as error:
            raise InputError(f"the run record is not JSON: {error.message}", hint=hint) from error
        version = plain.get("schema_version") if isinstance(plain, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise InputError(f"{shown(path)} is not a run record: it has no schema_version", hint=hint)
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{shown(path)} has schema version {version}, expected at most {SCHEMA_VERSION}",
                hint="update attnctl: a newer one wrote it",
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise InputError(f"{shown(path)} is damaged at {where}: {first['msg']}{more}", hint=hint) from error


def record_digest(plain: dict[str, Any]) -> str:
    """Return the SHA-256 over a record's own content: every key but ``digest``, whatever the layout of the file."""
    content = {name: value for name, value in plain.items() if name != "digest"}
    return sha256_of(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def environment() -> EnvironmentRecord:
    """Gather the versions of the stack; imports none of it."""
    packages: dict[str, str | None] = {}
    for name in STACK:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return EnvironmentRecord(
        attnctl=__version__,
        python=platform.python_version(),
        platform=platform.system(),
        machine=platform.machine(),
        packages=packages,
    )


def processor_name() -> str:
    """Return the name of this machine's processor, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def model_files(place: str | os.PathLike[str]) -> dict[str, str]:
    """Return the SHA-256 of every file of a model that a run reads, by name relative to the model's folder.

    These are the configurations, vocabularies and ``.safetensors`` weights; left out are other formats, the
    parts that a run never loads (safety checker, feature extractor, image encoder), and a variant of weights
    (``.fp16.``) beside the plain ones. A file is read once per process as long as its size and time stay the
    same.

    Args:
        place: A model folder, or a single weights file.

    Raises:
        InputError: If it cannot be read, or holds no such file.
    """
    root = Path(place)
    try:
        if root.is_file():
            return {root.name: _digest(root)}
        found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if _takes_part(path, root)}
        digests = {name: _digest(found[name]) for name in sorted(found)}
    except OSError as error:
        raise InputError(f"cannot read the model {shown(place)}: {reason(error)}", hint="check the path") from error
    if not digests:
        raise InputError(f"there is no model in {shown(place)}", hint="name a folder in diffusers' layout")
    return digests


def model_fingerprint(place: str | os.PathLike[str]) -> str:
    """Return one SHA-256 for a model: equal folders give equal fingerprints, wherever they lie.

    For a single file it is that file's own SHA-256, as model sites state it. For a folder it is taken over
    the sorted lines ``<sha256>  <relative name>`` of `model_files`, which is what ``sha256sum`` prints.

    Raises:
        InputError: If it cannot be read, or holds no model.
    """
    files = model_files(place)
    if Path(place).is_file():
        return next(iter(files.values()))
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return sha256_of(lines.encode("utf-8", "surrogateescape"))


def _takes_part(path: Path, root: Path) -> bool:
    """Tell whether a file below a model folder is one that a run reads."""
    parts = path.relative_to(root).parts
    if parts[0] in _UNUSED_PARTS or any(part.startswith(".") for part in parts) or not path.is_file():
        return False
    if path.suffix == ".safetensors":
        plain = path.with_name(path.name.split(".")[0] + path.suffix)
        return plain == path or not plain.exists()
    return path.suffix in {".json", ".txt", ".model"}


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(str(real(path)), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _digest_of(path: str, size: int, changed: int) -> str:
    """Hash one file; size and time of change are there for the cache alone."""
    return sha256_of_file(path)
