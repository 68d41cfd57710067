"""Checks, one session each: `nox -s tests lint types docs package`; off by default: bench, gpu, minimums.

Sessions that need torch share one environment, `.nox/torch`: installing torch takes minutes and gigabytes,
so it is done once, and again only when pyproject.toml or the interpreter changes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types", "docs", "package"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PACKAGES = ("attnctl", "attnctl_plugins", "attnctl_evaluation")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def group(*names: str) -> list[str]:
    """Requirements of dependency groups; spelled out, because older pips do not know ``--group``."""
    return list(nox.project.dependency_groups(PROJECT, *names))


def shared_environment(session: nox.Session) -> str:
    """Make the environment of all torch sessions, or find it up to date; return its interpreter."""
    folder = ROOT / ".nox" / "torch"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = folder / "made-from"
    source = (ROOT / "pyproject.toml").read_bytes() + sys.version.encode() + Path(__file__).read_bytes()
    wanted = hashlib.sha256(source).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        session.run(sys.executable, "-m", "virtualenv", "-q", str(folder), external=True)
        extras = ",".join(PROJECT["project"]["optional-dependencies"])
        requirements = ["--editable", f"{ROOT}[{extras}]", *group("test", "types", "build")]
        session.run(str(python), "-m", "pip", "install", "-q", *requirements, external=True)
        stamp.write_text(wanted)
    return str(python)


def in_shared(session: nox.Session, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run `python ARGUMENTS` in the shared environment, from the root of the checkout, without a network."""
    session.chdir(ROOT)
    session.run(shared_environment(session), *arguments, external=True, env={**OFFLINE, **(env or {})})


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The test suite; arguments after `--` go to pytest, for example `-- -m slow` or `-- tests/attnctl`."""
    workers = [] if any(a.startswith("-n") for a in session.posargs) else ["-n", "auto", "--dist", "worksteal"]
    in_shared(session, "-m", "pytest", *workers, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff's rules and its formatter."""
    session.install("-q", *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Types: mypy, strict."""
    in_shared(session, "-m", "mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into `site`; a broken link or reference is an error. `-- serve` shows it."""
    session.install("-q", *group("docs"))
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]), env={"NO_MKDOCS_2_WARNING": "true"})


@nox.session(venv_backend="none")
def package(session: nox.Session) -> None:
    """Build the wheel and the sdist, look inside, and run the wheel by itself, outside the checkout.

    The wheel is installed alone; what it depends on is lent by the shared environment. The other half, that
    the declared dependencies suffice, is what the first command of the README shows; `.ci/run` runs that.
    """
    python = shared_environment(session)
    work = Path(session.create_tmp()).resolve()
    session.chdir(ROOT)
    shutil.rmtree(work / "dist", ignore_errors=True)
    session.run(python, "-m", "build", "-q", "--outdir", str(work / "dist"), external=True)
    (wheel,) = (work / "dist").glob("*.whl")
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    names = {name for name in names if not re.fullmatch(r"attnctl-[^/]*\.dist-info", name)}
    if names != set(PACKAGES):
        session.error(f"top-level names in the wheel: {sorted(names)}; expected exactly {sorted(PACKAGES)}")
    session.log(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, top-level names {sorted(names)}")

    alone = work / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    session.run(sys.executable, "-m", "virtualenv", "-q", str(alone), external=True)
    bin_folder = alone / ("Scripts" if sys.platform == "win32" else "bin")
    own = str(bin_folder / "python")
    session.run(own, "-m", "pip", "install", "-q", "--no-deps", str(wheel), external=True)
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    lent, home = (session.run(p, "-c", find, external=True, silent=True).strip() for p in (python, own))
    # A path file adds the lender's packages behind our own and does not read the lender's path files: the
    # editable attnctl over there stays out.
    Path(home, "lent.pth").write_text(lent + "\n")

    elsewhere = work / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    elsewhere.mkdir()
    session.chdir(elsewhere)
    where = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    for file in session.run(own, "-c", where, external=True, silent=True).split():
        if not Path(file).is_relative_to(home):
            session.error(f"{file} was imported, which is not in {home}")
    attnctl = str(bin_folder / "attnctl")
    for arguments in (["--help"], ["plugins"], ["run", "--method", "fpe", "--out", "first"]):
        session.run(attnctl, *arguments, external=True, env=OFFLINE)


@nox.session(venv_backend="none", default=False)
def bench(session: nox.Session) -> None:
    """Time and peak memory against published code and of every method; arguments after `--` go to both scripts."""
    in_shared(session, "tools/bench.py", *session.posargs)
    in_shared(session, "tools/bench_methods.py", *session.posargs)


@nox.session(venv_backend="none", default=False)
def gpu(session: nox.Session) -> None:
    """The tests marked gpu: they need a CUDA device."""
    in_shared(session, "-m", "pytest", "-m", "gpu", *session.posargs)


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """The tests with the oldest release of every dependency that pyproject.toml allows."""
    project = PROJECT["project"]
    ranges = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    oldest = [re.sub(r">=([^,]+),.*", r"==\1", requirement) for requirement in ranges]
    session.install("-q", "-e", ".", *oldest, *group("test", "build"))
    # Old releases use what newer ones of other packages deprecate; that is not ours to mend.
    session.run("pytest", "-o", "filterwarnings=default", *session.posargs, env=OFFLINE)
