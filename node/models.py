"""`flairnode model`: which model packs are here, what they are, and whether they are whole."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, ClassVar

from config.loader import load_settings
from config.settings import Settings
from dicom.errors import Outcome, StudyError
from node.cli import EXIT_DONE
from pipeline.model_pack import (
    DEFAULT_PACK,
    SHIPPED_PACKS,
    Manifest,
    ModelPack,
    find_pack,
    install_pack,
    list_packs,
    load_pack,
    read_manifest,
)


class ImportNotSupportedError(StudyError):
    """Importing nnU-Net results comes with a later version."""

    reason: ClassVar[str] = "not-supported-yet"
    outcome: ClassVar[Outcome] = Outcome.FAILED


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
    importing.add_argument("folder", type=Path, help="a stock nnU-Net results folder")
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
        f"members        {len(manifest.folds)}"
        + ("" if manifest.patient_folds else " (differ by seed, not by patients)"),
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
    from pipeline.ensemble import Ensemble

    ensemble = Ensemble.load(pack, device="cpu")
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
    """Refuse in plain words.

    Raises:
        ImportNotSupportedError: Always, in this version.
    """
    raise ImportNotSupportedError(
        f"this version cannot make a pack of {arguments.folder}: importing nnU-Net results comes "
        "with a later one; `flairnode model install` takes finished packs"
    )


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
