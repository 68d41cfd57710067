"""From arguments to what a run is asked to do, checked as far as that goes without torch and without the model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attnctl.config import parse_assignments
from attnctl.errors import InputError, nearest_first, unknown
from attnctl.example import Example
from attnctl.inversion import InversionSpec
from attnctl.loading import DTYPES, inspect_folder, locate
from attnctl.request import Edit, EditRequest, Sampling, check_text
from attnctl.terminal import quoted, say, shorten

if TYPE_CHECKING:
    from attnctl.cache import TrajectoryCache
    from attnctl.method import EditMethod
    from attnctl.model import Model
    from attnctl.modifier import Modifier
    from attnctl.registry import Registry


def read_request(arguments: Namespace, registry: Registry) -> EditRequest:
    """Turn the arguments of ``run`` into a request; one with ``--image`` still lacks its pixels.

    Raises:
        AttnctlError: Something that was given cannot be used.
    """
    chosen = choose_methods(arguments.methods, registry)
    check_model(arguments)
    example = Example.of(arguments.model)
    prompts, source = list(arguments.prompts or []), arguments.source_prompt
    sampling = Sampling.of(arguments)
    if not prompts and source is None and arguments.image is None:
        if not example.prompt:
            raise InputError(
                f"the model {quoted(arguments.model)} suggests no example to run",
                hint="give --source-prompt and --prompt, or --image and --prompt",
            )
        prompts, source = [example.prompt], example.source_prompt
        if arguments.seed is None:
            sampling = replace(sampling, seed=example.seed)
    if not prompts:
        raise InputError("there is no target prompt", hint="say with --prompt what the edited picture shows")
    for text in (*prompts, source or ""):
        check_text(text)
    extras = read_extras(arguments, chosen, registry)
    methods, added = build_methods(extras, chosen, example, registry)
    if added:
        say("note", f"settings that suit this model: {', '.join(added)}")
    edits = tuple(
        Edit(
            prompt,
            methods[name].again(),
            name=name if n == 1 else f"{name}-{n}",
            modifiers={added: modifier.again() for added, modifier in extras.modifiers.items()},
        )
        for n, prompt in enumerate(prompts, start=1)
        for name in chosen
    )
    return _checked(arguments, edits, source, example.fill(sampling), extras, registry)


def build_methods(
    extras: Extras, chosen: Sequence[str], example: Example, registry: Registry
) -> tuple[dict[str, EditMethod], list[str]]:
    """Build each chosen method once, with what is given and what suits the model beside that.

    Returns:
        The methods by name, and what was added for the model's sake as ``method.setting=value``.

    Raises:
        InputError: A setting or preset is unknown or not allowed.
    """
    settings = assign_settings(extras.settings, chosen, registry)
    presets = assign_presets(extras.presets, chosen, registry)
    added = [text for name in chosen for text in example.suggest(name, settings[name], presets[name], registry)]
    return {name: registry.make_method(name, settings[name], presets[name]) for name in chosen}, added


def _checked(
    arguments: Namespace,
    edits: tuple[Edit, ...],
    source: str | None,
    sampling: Sampling,
    extras: Extras,
    registry: Registry,
) -> EditRequest:
    """Build the request; a source prompt stands in for pixels that are not read yet, so that all else is checked."""
    if arguments.inversion is not None:
        registry.inversion(arguments.inversion)
        if arguments.image is None:
            raise InputError(
                "--inversion is for real pictures, and there is none", hint="give --image, or leave --inversion out"
            )
    if arguments.image is not None and sampling.scheduler != "ddim":
        raise InputError(
            f"a real picture is inverted with DDIM, so --scheduler cannot be {sampling.scheduler}",
            hint="leave --scheduler out",
        )
    request = EditRequest(
        edits,
        source_prompt=source if arguments.image is None else "a picture",
        inversion=arguments.inversion,
        inversion_settings=extras.inversion,
        check_reconstruction=not arguments.no_reconstruction,
        allow_no_op=arguments.allow_no_op,
        **vars(sampling),
    )
    if arguments.image is not None:
        for edit in edits:
            if registry.method(edit.method).needs_source_prompt and not (source or "").strip():
                raise InputError(
                    f"{edit.method_name} needs to know what the picture shows", hint="give --source-prompt"
                )
    return request


@dataclass(frozen=True)
class Extras:
    """What is asked for beside methods.

    Attributes:
        inversion: Settings of the inversion.
        modifiers: Built modifiers by name, in the order in which they were named.
        settings: What is left of ``--set``, for methods.
        presets: What is left of ``--preset``, for methods.
    """

    inversion: dict[str, str]
    modifiers: dict[str, Modifier]
    settings: list[str]
    presets: list[str]


def read_extras(arguments: Namespace, chosen: Sequence[str], registry: Registry) -> Extras:
    """Sort out ``--set NAME.SETTING=VALUE`` and ``--preset NAME.PRESET`` where NAME is an inversion or a modifier.

    Raises:
        InputError: An inversion or modifier is unknown, or named in a setting without taking part.
    """
    modifiers: dict[str, dict[str, str]] = {}
    for name in arguments.modifiers:
        if name in modifiers:
            raise InputError(f"the modifier {name} is named twice", hint="name it once")
        modifiers[name] = {}
    found = Extras({}, {}, [], [])
    known = {**dict.fromkeys(registry.inversions, "inversion"), **dict.fromkeys(registry.modifiers, "modifier")}
    takers = {**modifiers, **({} if arguments.inversion is None else {arguments.inversion: found.inversion})}
    for option, given, rest in (
        ("--set", arguments.settings, found.settings),
        ("--preset", arguments.presets, found.presets),
    ):
        for text in given:
            owner, dot, setting = text.partition("=")[0].partition(".")
            owner = owner.strip()
            if not dot or owner not in known or owner in chosen:
                rest.append(text)
                continue
            if owner not in takers:
                raise InputError(
                    f"{option} {shorten(text)}: the {known[owner]} {owner} is no part of this",
                    hint=f"add --{known[owner]} {owner}",
                )
            pair = {"preset": setting} if option == "--preset" else parse_assignments([text.partition(".")[2]])
            takers[owner].update(pair)
    for name, settings in modifiers.items():
        found.modifiers[name] = registry.make_modifier(name, settings)
    if arguments.inversion is not None:
        registry.make_inversion(InversionSpec(arguments.inversion).with_settings(found.inversion))
    return found


def kept_trajectories(arguments: Namespace) -> TrajectoryCache | None:
    """Return where inversions are kept from run to run; None with ``--no-cache``."""
    from attnctl.cache import TrajectoryCache, cache_folder

    return None if arguments.no_cache else TrajectoryCache(cache_folder())


def wanted_model(arguments: Namespace) -> Model:
    """Load the model that the arguments name.

    Raises:
        AttnctlError: It cannot be loaded.
    """
    from attnctl.loading import load_model

    return load_model(
        arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device=arguments.device,
        config=arguments.config,
    )


def wanted_structure(arguments: Namespace) -> Model:
    """Load the structure of the model that the arguments name, without its weights.

    Raises:
        AttnctlError: It cannot be loaded.
    """
    from attnctl.loading import load_structure

    return load_structure(arguments.model, revision=arguments.revision, dtype=arguments.dtype, config=arguments.config)


def check_model(arguments: Namespace) -> None:
    """Refuse a model, dtype or folder that cannot be right, before anything heavy is imported.

    Raises:
        AttnctlError: There is no such model or type, or the folder lacks something.
    """
    location, single_file = locate(arguments.model)
    if arguments.dtype is not None and arguments.dtype not in DTYPES:
        raise unknown("dtype", arguments.dtype, DTYPES)
    if location is not None and not single_file:
        inspect_folder(location, arguments.model)


def check_picture(path: str, fit: str, size: tuple[int, int] | None) -> None:
    """Refuse a picture that cannot be read, before the model is loaded.

    Raises:
        InputError: There is no such picture, it is damaged, or `fit` is unknown.
    """
    from attnctl.pictures import FITS
    from attnctl.runs.decode import decode, regular_file

    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    decode(regular_file(path), size or (1024, 1024), as_stored=fit == "nearest-stretch")


def choose_methods(given: Sequence[str] | None, registry: Registry) -> list[str]:
    """Return the methods to run.

    Raises:
        InputError: None is named, one is unknown, or one is named twice.
    """
    if not given:
        known = ", ".join(sorted(registry.methods)) or "none: no plugin provides one"
        raise InputError(f"no method is named; known are {known}", hint="give --method NAME; see `attnctl methods`")
    for i, name in enumerate(given):
        registry.method(name)
        if name in given[:i]:
            raise InputError(f"the method {name} is named twice", hint="name it once; every prompt gets its own edit")
    return list(given)


def assign_settings(pairs: Iterable[str], chosen: Sequence[str], registry: Registry) -> dict[str, dict[str, Any]]:
    """Sort ``name=value`` and ``method.name=value`` by method; without a method, all that have the setting get it.

    Raises:
        InputError: A pair is malformed, or names a setting that no chosen method has.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    fields: Mapping[str, Any] = {name: registry.method(name).Config.model_fields for name in chosen}
    for key, value in parse_assignments(pairs).items():
        method, dot, name = key.partition(".")
        if not dot:
            takers = [m for m in chosen if key in fields[m]]
            if not takers:
                raise unknown(f"setting of {', '.join(chosen)}", key, {n for m in chosen for n in fields[m]})
            for taker in takers:
                found[taker].setdefault(key, value)
            continue
        if method not in found:
            raise InputError(
                f"--set {key}: {method!r} is not a method of this run", hint=f"those are {', '.join(chosen)}"
            )
        if name not in fields[method]:
            raise unknown(f"setting of {method}", name, fields[method])
        found[method][name] = value
    return found


def assign_presets(given: Iterable[str], chosen: Sequence[str], registry: Registry) -> dict[str, str | None]:
    """Sort ``name`` and ``method.name`` by method; without a method, all that have the preset start from it.

    Raises:
        InputError: No chosen method has such a preset.
    """
    found: dict[str, str | None] = dict.fromkeys(chosen)
    presets = {name: registry.method(name).presets for name in chosen}
    for text in given:
        method, dot, name = text.partition(".")
        takers = [method] if dot and method in found else [m for m in chosen if text in presets[m]]
        wanted = name if dot and method in found else text
        if not takers or wanted not in presets[takers[0]]:
            asked = takers or chosen
            known = {n for m in asked for n in presets[m]}
            raise unknown(f"preset of {', '.join(asked)}", wanted, nearest_first(wanted, known))
        for taker in takers:
            if found[taker] is not None:
                raise InputError(f"{taker} is given two presets, {found[taker]} and {wanted}", hint="give it one")
            found[taker] = wanted
    return found
