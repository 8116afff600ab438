"""`flairnode model`: which model packs are here, what they are, and whether they are whole."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import Outcome, StudyError
from node.cli import EXIT_DONE, EXIT_REFUSED
from pipeline.model_pack import (
    DEFAULT_PACK,
    NAME_PATTERN,
    SHIPPED_PACKS,
    VERSION_PATTERN,
    Manifest,
    ModelPack,
    ModelPackError,
    find_pack,
    install_pack,
    list_packs,
    load_pack,
    read_manifest,
)

_DEALT = {
    True: "",
    False: " (differ by seed, not by patients)",
    None: " (how patients were dealt to them is not known)",
}


def register(subparsers: Any) -> None:  # noqa: ANN401  # argparse names no public type for it
    """Add the `model` command and its five actions."""
    model = subparsers.add_parser(
        "model",
        help="model packs: list, show, verify, import, install",
        description="Model packs ship with flairnode or are installed below data_dir/packs.",
    )
    actions = model.add_subparsers(title="actions", dest="action", required=True)
    listing = _action(actions, "list", "which packs are here", run_list)
    show = _action(actions, "show", "what a pack is, and what it is not for", run_show)
    verify = _action(actions, "verify", "check every file, and that the network runs", run_verify)
    install = _action(actions, "install", "copy a verified pack into data_dir/packs", run_install)
    importing = _action(actions, "import", "make a pack of nnU-Net results", run_import)
    for action in (show, verify):
        action.add_argument(
            "pack", nargs="?", default=None, help="name, name-version or folder (default: starter)"
        )
    install.add_argument("folder", type=Path, help="a model pack")
    _take_import_arguments(importing)
    for action in (listing, show, verify, install, importing):
        action.add_argument("--config", type=Path, help="settings of a site (TOML)")
        action.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run_list(arguments: argparse.Namespace) -> int:
    """Every pack that can be named, installed ones first; the one in use is marked."""
    settings = load_settings(arguments.config)
    folders = {"installed": settings.node.packs_dir, "shipped": SHIPPED_PACKS}
    in_use = _path_in_use(settings)
    packs = [
        _in_short(manifest, path) | {"where": where, "in_use": path == in_use}
        for where, folder in folders.items()
        for path, manifest in list_packs(folder)
    ]
    if arguments.json:
        print(json.dumps({"packs": packs}))
        return EXIT_DONE
    for pack in packs:
        print(
            f"{'*' if pack['in_use'] else ' '} {pack['name']} {pack['version']}"
            f"  {pack['status']}, {pack['where']}, {pack['digest'][:12]}"
        )
    if not packs:
        print("no model pack is here: `flairnode model install FOLDER` adds one")
    return EXIT_DONE


def run_show(arguments: argparse.Namespace) -> int:
    """The manifest, in words or as it is."""
    pack = load_pack(_find(arguments))
    manifest = pack.manifest
    if arguments.json:
        print(json.dumps(_in_short(manifest, pack.path) | {"manifest": _plain(manifest)}))
        return EXIT_DONE
    lines = [
        f"{manifest.name} {manifest.version} ({manifest.status})",
        f"digest         {pack.digest}",
        f"path           {pack.path}",
        f"intended use   {manifest.intended_use}",
        *(f"limit          {limit}" for limit in manifest.limits),
        f"trained on     {manifest.training_data.text}",
        f"tested         {manifest.validation.text}",
        f"members        {len(manifest.folds)}{_DEALT[manifest.patient_folds]}",
        f"lesions        probability > {manifest.threshold:g}, "
        f"at least {manifest.minimum_lesion_mm3:g} mm3",
        f"licence        {manifest.licence}",
        *(f"attribution    {attribution}" for attribution in manifest.attributions),
    ]
    print("\n".join(lines))
    return EXIT_DONE


def run_verify(arguments: argparse.Namespace) -> int:
    """Digests of all files, and whether the weights fit the network. Exit 1 where they do not."""
    pack = load_pack(_find(arguments))
    # torch: only this action needs it.
    from pipeline.ensemble import load_ensemble

    ensemble = load_ensemble(pack, device="cpu")
    return _say(
        arguments,
        pack,
        f"{pack.name} {pack.version}: {len(pack.manifest.files)} files have their digests, "
        f"{len(pack.manifest.folds)} members fit the network on {ensemble.device}",
    )


def run_install(arguments: argparse.Namespace) -> int:
    """Copy, all or nothing. The same pack again changes nothing."""
    pack = install_pack(arguments.folder, load_settings(arguments.config).node.packs_dir)
    return _say(
        arguments,
        pack,
        f"installed {pack.name} {pack.version} as {pack.path}\n"
        f'use it with  [pipeline] model = "{pack.name}-{pack.version}"',
    )


def run_import(arguments: argparse.Namespace) -> int:
    """Make a pack of nnU-Net's results and install it. Exit 3 where they are refused, with why."""
    # torch and nnU-Net: only this action needs them.
    from pipeline.nnunet_import import Wanted, import_results

    packs = arguments.output or load_settings(arguments.config).node.packs_dir
    wanted = Wanted(
        name=arguments.name,
        version=arguments.version,
        image=arguments.input,
        threshold=arguments.threshold,
        minimum_lesion_mm3=arguments.minimum_lesion_mm3,
        dilation_mm=arguments.dilation_mm,
        orientation=arguments.orientation,
    )
    try:
        pack = import_results(
            arguments.folder, packs, wanted, folds=arguments.folds, checkpoint=arguments.checkpoint
        )
    except ModelPackError as error:
        return _refused(arguments, error)
    except OSError as error:  # no permission, disk full: nothing is left behind
        raise ModelPackError(f"{error.filename}: {error.strerror}") from error
    manifest = pack.manifest
    use = (
        f'[pipeline] model = "{pack.name}-{pack.version}"'
        if arguments.output is None
        else f"flairnode process INPUT --model {pack.path}"
    )
    return _say(
        arguments,
        pack,
        f"imported {pack.name} {pack.version} as {pack.path}\n"
        f"{manifest.configuration}, {len(manifest.folds)} members, status research: nothing is"
        f" known of its training or validation\nuse it with  {use}",
    )


def _take_import_arguments(importing: argparse.ArgumentParser) -> None:
    importing.description = (
        "Makes a model pack of a stock nnU-Net v2 results folder of one channel and two classes"
        " (2d or 3d_fullres). Checkpoints are read without running anything in them. Exit 3 where"
        " the folder is refused, with the reason."
    )
    importing.add_argument(
        "folder", type=Path, metavar="RESULTS", help="nnUNetTrainer__nnUNetPlans__2d or similar"
    )
    importing.add_argument("--name", type=_matching(NAME_PATTERN), required=True, metavar="N")
    importing.add_argument("--version", type=_matching(VERSION_PATTERN), required=True, metavar="V")
    importing.add_argument(
        "--input",
        choices=("brain", "head"),
        required=True,
        help="brain: trained on stripped images; head: trained on images with the skull",
    )
    importing.add_argument(
        "--output", type=Path, metavar="DIR", help="where packs lie (default: the site's)"
    )
    importing.add_argument(
        "--folds",
        nargs="+",
        type=_fold,
        default=(0, 1, 2, 3, 4),
        metavar="K",
        help="members to take, or `all` (default: 0 1 2 3 4)",
    )
    importing.add_argument(
        "--checkpoint", default="checkpoint_final.pth", metavar="FILE", help="(%(default)s)"
    )
    importing.add_argument(
        "--threshold", type=_number(0.0, 1.0), default=0.5, metavar="P", help="(%(default)s)"
    )
    importing.add_argument(
        "--minimum-lesion-mm3",
        type=_number(-1.0, 1e6),
        default=5.0,
        metavar="MM3",
        help="smaller lesions are dropped (%(default)s; nnU-Net drops none)",
    )
    importing.add_argument(
        "--dilation-mm",
        type=_number(-1.0, 50.0),
        default=2.0,
        metavar="MM",
        help="the brain mask is widened in plane by this much (%(default)s)",
    )
    importing.add_argument(
        "--orientation",
        type=_matching(r"[LR][AP][IS]"),
        metavar="XYZ",
        help="how the training files lay: where columns, rows, slices run to (default: LPS, as"
        " DICOM; RAS where a reorienting reader is named in the plans)",
    )


def _matching(pattern: str) -> Any:  # noqa: ANN401  # what argparse takes for a type
    def check(given: str) -> str:
        if re.fullmatch(pattern.strip("^$"), given) is None:
            raise argparse.ArgumentTypeError(f"{given!r} does not match {pattern}")
        return given

    return check


def _number(above: float, below: float) -> Any:  # noqa: ANN401
    def check(given: str) -> float:
        value = float(given)
        if not above < value < below or value < 0:
            raise argparse.ArgumentTypeError(f"{given} is out of range")
        return value

    return check


def _fold(given: str) -> int | str:
    if given == "all":
        return given
    if not given.isascii() or not given.isdigit() or int(given) > 99:
        raise argparse.ArgumentTypeError(f"{given!r} is no fold: a number, or `all`")
    return int(given)


def _refused(arguments: argparse.Namespace, error: StudyError) -> int:
    """Whose files are refused is not at fault, and neither are we: skipped, exit 3."""
    if arguments.json:
        print(
            json.dumps(
                {"outcome": Outcome.SKIPPED, "reason": error.reason, "explanation": str(error)}
            )
        )
    print(f"flairnode model: {Outcome.SKIPPED}: {error.reason}: {error}", file=sys.stderr)
    return EXIT_REFUSED


def _action(actions: Any, name: str, words: str, run: Any) -> Any:  # noqa: ANN401
    parser = actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _find(arguments: argparse.Namespace) -> Path:
    settings = load_settings(arguments.config)
    return find_pack(arguments.pack or DEFAULT_PACK, folders=[settings.node.packs_dir])


def _path_in_use(settings: Settings) -> Path | None:
    try:
        return find_pack(settings.pipeline.model, folders=[settings.node.packs_dir])
    except StudyError:
        return None


def _in_short(manifest: Manifest, path: Path) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "status": manifest.status,
        "digest": read_manifest(path)[1],
        "path": str(path),
    }


def _plain(manifest: Manifest) -> dict[str, Any]:
    plain: dict[str, Any] = manifest.model_dump(mode="json")
    return plain


def _say(arguments: argparse.Namespace, pack: ModelPack, words: str) -> int:
    if arguments.json:
        print(json.dumps(_in_short(pack.manifest, pack.path) | {"ok": True}))
    else:
        print(words)
    return EXIT_DONE
