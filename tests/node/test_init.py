"""A site's settings by questions: every wrong answer is explained, and what is written loads."""

import argparse
from pathlib import Path

import pytest

from config.loader import load_settings
from node import init
from node.check import Finding
from node.cli import EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_ARGUMENTS
from node.init import QUESTIONS, AnswerError, ask, write_site


def arguments(tmp_path: Path, **changes: object) -> argparse.Namespace:
    answers = tmp_path / "answers.toml"
    if not answers.exists():
        answers.write_text(f'data_dir = "{tmp_path}/data"\n', encoding="utf-8")
    return argparse.Namespace(
        **{
            "output": tmp_path / "site.toml",
            "answers": answers,
            "force": False,
            "no_check": True,
            **changes,
        }
    )


def test_defaults_make_a_file_that_loads(tmp_path: Path) -> None:
    assert init.run(arguments(tmp_path)) == EXIT_DONE
    settings = load_settings(tmp_path / "site.toml")
    assert settings.node.ae_title == "FLAIRNODE"
    assert settings.completeness.query_peer == "archive"
    assert settings.destinations[0].research
    assert settings.security.calling_ae_titles == ("ORTHANC",)
    assert (tmp_path / "site.toml").stat().st_mode & 0o777 == 0o600


def test_what_is_typed_is_what_is_written(tmp_path: Path) -> None:
    typed = {
        "AE title of this node": "MS_NODE",
        "Address that senders": "10.1.2.3",
        "Its port": "104",
        "Folder": str(tmp_path / "data"),
        "AE title of the archive": "PACS",
        "Its host": "pacs.example",
        "Its DICOM port": "11113",
        "May it be": "no",
        "AE titles that may": "PACS, MR1",
        "Networks": "10.1.0.0/16, 10.2.0.0/16",
        "Seconds": "45",
        "The operator page": "n",
    }

    def read(prompt: str) -> str:
        return next(answer for start, answer in typed.items() if prompt.startswith(start))

    write_site(tmp_path / "site.toml", ask({}, interactive=True, read=read))
    settings = load_settings(tmp_path / "site.toml")
    assert (settings.node.ae_title, settings.node.port) == ("MS_NODE", 104)
    assert settings.peer("archive").host == "pacs.example"
    assert settings.completeness.query_peer is None
    assert settings.completeness.quiet_period_s == 45
    assert settings.security.calling_ae_titles == ("PACS", "MR1")
    assert settings.security.addresses == ("10.1.0.0/16", "10.2.0.0/16")
    assert not settings.web.enabled


def test_senders_are_the_archive_unless_somebody_says_otherwise() -> None:
    answers = ask({"archive_ae_title": "PACS"}, interactive=False)
    assert answers["senders"] == "PACS"


WRONG = [
    ("ae_title", "SEVENTEEN_LETTERS", "1 to 16"),
    ("ae_title", "A\\B", "backslash"),
    ("bind_host", "here", "address"),
    ("port", "0", "1 to 65535"),
    ("port", "eleven", "1 to 65535"),
    ("data_dir", "data", "from the root"),
    ("archive_host", "http://pacs", "without http"),
    ("archive_port", "70000", "1 to 65535"),
    ("query", "perhaps", "yes or no"),
    ("senders", "PACS,", "1 to 16"),
    ("networks", "10.1.2.3/8", "10.20.0.0/16"),
    ("quiet_period_s", "0.5", "whole seconds"),
    ("archive_ae_title", "", "1 to 16"),
    ("page", "", "yes or no"),
]


@pytest.mark.parametrize(("key", "wrong", "why"), WRONG)
def test_a_wrong_answer_is_explained_and_asked_again(key: str, wrong: str, why: str) -> None:
    question = next(one for one in QUESTIONS if one.key == key)
    with pytest.raises(AnswerError, match=why):
        question.check(wrong)
    if not wrong:
        return  # Enter takes the default
    tried: list[str] = []
    said: list[str] = []

    def read(_prompt: str) -> str:
        tried.append(wrong if not tried else "")
        return tried[-1]

    others = {one.key: one.default.format(archive_ae_title="A") for one in QUESTIONS}
    del others[key]
    answers = ask(others, interactive=True, read=read, say=said.append)
    assert len(tried) == 2
    assert why in said[0]
    assert answers[key]


def test_every_question_has_a_case_above() -> None:
    assert {case[0] for case in WRONG} == {question.key for question in QUESTIONS}


def test_a_file_that_is_there_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.toml").write_text("mine", encoding="utf-8")
    assert init.run(arguments(tmp_path)) == EXIT_WRONG_ARGUMENTS
    assert (tmp_path / "site.toml").read_text(encoding="utf-8") == "mine"
    assert "--force" in capsys.readouterr().err
    assert init.run(arguments(tmp_path, force=True)) == EXIT_DONE


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ("shoe_size = 9\n", "shoe_size"),
        ("port = \n", "answers.toml"),
        ("port = 99999\n", "port"),
    ],
)
def test_answers_that_cannot_be_used_write_nothing(
    tmp_path: Path, answers: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answers.toml").write_text(answers, encoding="utf-8")
    assert init.run(arguments(tmp_path)) == EXIT_WRONG_ARGUMENTS
    assert not (tmp_path / "site.toml").exists()
    assert why in capsys.readouterr().err


def test_breaking_off_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(_prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", broken_off)
    monkeypatch.setattr(init.ask, "__kwdefaults__", {**init.ask.__kwdefaults__, "read": broken_off})
    assert init.run(arguments(tmp_path, answers=None)) == 130
    assert not (tmp_path / "site.toml").exists()


@pytest.mark.timeout(240)
def test_an_archive_that_does_not_answer_is_said_by_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "node.check.check_self_test", lambda _: Finding("self-test", ok=True, text="left out")
    )
    (tmp_path / "answers.toml").write_text(
        f'data_dir = "{tmp_path}/data"\narchive_port = 1\n', encoding="utf-8"
    )
    assert init.run(arguments(tmp_path, no_check=False)) == EXIT_REFUSED
    told = capsys.readouterr().out
    assert "FAIL  peer archive" in told
    assert "Mend what failed above" in told
