"""The files of a run, written as soon as they exist, and taken back where nothing came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnctl.pictures import to_image
from attnctl.runs.manifest import FileRecord, InputPicture, Manifest, PluginFile
from attnctl.runs.runfolder import DEFAULT_ROOT, MANIFEST_NAME, RunFolder, open_run_folder
from attnctl.runs.strip import side_by_side

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from attnctl.model import Model
    from attnctl.pictures import LoadedPicture
    from attnctl.request import EditRequest
    from attnctl.result import EditResult, LaneResult

SOURCE, SHEET, RECONSTRUCTION, RECORDINGS = "source", "side-by-side", "reconstruction", "recordings"
"""File names without ``.png``; lanes are called as they like, so these are taken first."""


class RunOutput:
    """A run's folder and what has been written to it.

    Attributes:
        folder: The folder.
        manifest: The run record, once written.
        changes: Per edit lane, the mean absolute difference to the source picture over all pixels and channels, in
            levels of 255.
    """

    def __init__(self, out: str | None, *, label: str, seed: int, force: bool) -> None:
        """Make the folder.

        Raises:
            InputError: It cannot be made, holds files, or cannot be written to.
        """
        given = None if out is None else Path(out).expanduser()
        self._made = _missing(given or DEFAULT_ROOT)
        before = _listing(given)
        self.folder: RunFolder = open_run_folder(given, method=label, seed=seed, force=force)
        if given is None:
            self._made.insert(0, self.folder.path)
        self._aside = [self.folder.path / name for name in sorted(_listing(self.folder.path) - before)]
        self.manifest: Manifest | None = None
        self.changes: dict[str, float] = {}
        self._lanes: dict[str, FileRecord] = {}
        self._others: dict[str, FileRecord] = {}
        self._source: Image | None = None
        for name in (SHEET, RECONSTRUCTION):
            self.folder.file(_own(name))

    @property
    def written(self) -> list[str]:
        """Names of the files that are written, in order."""
        return [record.file for record in (*self._others.values(), *self._lanes.values())]

    def write_input(self, picture: LoadedPicture) -> None:
        """Keep a real picture as the model sees it; it becomes ``source.png`` with the results."""
        self._source = to_image(picture.pixels / 2 + 0.5)

    def write_reconstruction(self, lane: str, pixels: Any) -> None:
        """Write what an inversion reconstructs: (3, H, W) in [0, 1]."""
        name = RECONSTRUCTION if lane == SOURCE else f"{RECONSTRUCTION} {lane}"
        self._others[name] = self._write(_own(name), to_image(pixels))

    def write_result(
        self,
        request: EditRequest,
        result: EditResult,
        model: Model,
        picture: InputPicture | None,
        command: Sequence[str],
        *,
        mask: InputPicture | None = None,
        plugins: Sequence[PluginFile] = (),
    ) -> Manifest:
        """Write every picture of a finished run, the sheet and the record."""
        from attnctl.runs.describing import describe_run

        images = {lane.name: self._picture(lane) for lane in result.lanes}
        for lane in result.lanes:
            stem = SOURCE if lane.role == "source" and self._source is not None else lane.name
            self._lanes[lane.name] = self._write(stem, images[lane.name])
        levels = {name: np.asarray(image).astype(np.float64) for name, image in images.items()}
        self.changes = {lane.name: _difference(levels[lane.name], levels[result.source.name]) for lane in result.edits}
        shown = [result.source, *result.edits]
        sheet = side_by_side([images[lane.name] for lane in shown], [_label(lane) for lane in shown])
        self._others[SHEET] = self._write(_own(SHEET), sheet)
        if result.recordings:
            self._others[RECORDINGS] = self._write_recordings(result)
        self.manifest = describe_run(
            request,
            result,
            model,
            pictures=self._lanes,
            files=self._others,
            input_picture=picture,
            mask=mask,
            command=command,
            plugins=plugins,
        )
        self.manifest.write(self.folder.manifest)
        return self.manifest

    def discard_if_empty(self) -> bool:
        """Undo the making of the folder if nothing was written to it, and say whether that is so."""
        if self.written or self.folder.manifest.exists():
            return False
        for path in self._aside:  # the record of an earlier run, which --force had set aside
            with contextlib.suppress(OSError):
                path.rename(self.folder.manifest)
        for path in self._made:
            with contextlib.suppress(OSError):  # not empty: somebody else's files
                path.rmdir()
        return True

    def _picture(self, lane: LaneResult) -> Image:
        """Return a lane's picture; a real source is the picture as given, not what the autoencoder makes of it."""
        return self._source if lane.role == "source" and self._source is not None else to_image(lane.pixels)

    def _write_recordings(self, result: EditResult) -> FileRecord:
        """Write all recorded tensors into one file, named as `attnctl.recording.named_tensors` names them."""
        from safetensors.torch import save

        from attnctl.files import write_atomic
        from attnctl.recording import named_tensors

        path = self.folder.path / f"{RECORDINGS}.safetensors"
        about = {name: f"{found.recording.of} of {found.recording.lane}" for name, found in result.recordings.items()}
        return FileRecord(file=path.name, sha256=write_atomic(path, save(named_tensors(result.recordings), about)))

    def _write(self, stem: str, image: Image) -> FileRecord:
        path, digest = self.folder.write_picture(stem, image)
        return FileRecord(file=path.name, sha256=digest)


def _own(name: str) -> str:
    """Return what the folder knows a file of ours by: the brackets tell it from a lane, and are not in its name."""
    return f"[{name}]"


def _label(lane: LaneResult) -> str:
    if lane.role == "source":
        return f"source: {lane.prompt}" if lane.prompt else "source"
    return f"{lane.name}: {lane.prompt}"


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).mean())


def _missing(path: Path) -> list[Path]:
    """Return the folders that making `path` makes, the deepest first."""
    try:
        return [p for p in (path, *path.parents) if not p.exists()]
    except (OSError, ValueError):
        return []


def _listing(path: Path | None) -> set[str]:
    """Return the names of set-aside records in a folder; none where it cannot be listed."""
    stem = Path(MANIFEST_NAME).stem
    try:
        return set() if path is None else {entry.name for entry in path.glob(f"{stem}-replaced-*")}
    except (OSError, ValueError):
        return set()
