"""Which result objects a site gets, and under which names they lie on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.settings import DEFAULT_KINDS, Destination, Peer, Settings
from node import analysis as module
from node.analysis import analyse_series, kinds_to_make
from tests.conftest import FlairSeries
from tests.pipeline.analysed import SETTINGS, analysis_of, pack, three_lesions


def site(*kinds: Any) -> Settings:  # noqa: ANN401  # wrong ones too
    names = [f"archive-{number}" for number in range(len(kinds))]
    return Settings(
        peers=tuple(Peer(name=name, ae_title="A", host="127.0.0.1", port=104) for name in names),
        destinations=tuple(
            Destination(peer=name, kinds=one) for name, one in zip(names, kinds, strict=True)
        ),
    )


def test_a_destination_takes_what_any_viewer_shows_unless_it_says_otherwise() -> None:
    assert Destination(peer="archive").kinds == ("seg", "sr", "key-image", "pdf", "note")


def test_a_probability_map_is_made_only_where_a_destination_names_it() -> None:
    assert kinds_to_make(site()) == DEFAULT_KINDS
    assert kinds_to_make(site(("seg",))) == DEFAULT_KINDS
    assert kinds_to_make(site(("seg",), ("seg", "probability"))) == (*DEFAULT_KINDS, "probability")


def test_every_object_has_a_file_of_its_own(
    make_flair_series: Callable[..., FlairSeries], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is left out; images, results and files are real."""
    monkeypatch.setattr(
        module, "analyse", lambda volume, *_given, **_named: analysis_of(volume, three_lesions())
    )
    ensemble: Any = SimpleNamespace(settings=lambda: SETTINGS)
    (tmp_path / "out").mkdir()
    done = analyse_series(
        make_flair_series().paths,
        ensemble,
        pack(),
        tmp_path / "out",
        kinds=(*DEFAULT_KINDS, "probability"),
    )
    names = [one.path.name for one in done.outputs]
    assert names == [
        *("seg.dcm", "sr.dcm", "key-image-1.dcm", "key-image-2.dcm", "key-image-3.dcm"),
        *("pdf.dcm", "probability.dcm"),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert [one["kind"] for one in done.report["outputs"]].count("key-image") == 3
