import json

import pytest

from anl import cli
from anl.data import registry
from tests.data.test_unpack import make_zip


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_zip(tmp_path / "archive.zip", {"train/REAL/1.jpg": b"1", "train/FAKE/2.jpg": b"2"})


def run(*words):
    return cli.main(["fetch", *map(str, words)])


def test_the_list_has_a_line_each(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(registry.load())
    assert next(line for line in lines if line.startswith("chameleon")).split("  ")[-1].startswith("academic research only")


def test_without_a_word_on_the_licence_nothing_is_fetched(archive, tmp_path, capsys):
    assert run("cifake", "--from", archive) == 2
    shown = capsys.readouterr()
    assert "licence     MIT" in shown.out and "32 x 32 JPEG" in shown.out and "IEEE Access" in shown.out
    assert "anl fetch: nothing was fetched" in shown.err and "--accept-licence" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["archive.zip"]


def test_an_archive_is_unpacked_and_the_next_command_named(archive, tmp_path, capsys):
    assert run("cifake", "--from", archive, "--accept-licence") == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("now run `anl index data/sources/cifake`\n") and "2 images, 2 bytes" in shown.out
    assert "expects 120,000 images: this is another edition, or a part" in shown.err
    assert json.loads((tmp_path / "data/sources/cifake/source.json").read_text())["licence"] == "MIT"
    assert run("cifake", "--accept-licence") == 0 and "was there already" in capsys.readouterr().out


def test_a_folder_stays_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/0_real").mkdir(parents=True)
    (tmp_path / "mine/0_real/1.jpg").write_bytes(b"1")
    assert run("wildrf", "--from", "mine", "--accept-licence", "--to", "notes") == 0
    out = capsys.readouterr().out
    assert f"stays where it is, in {tmp_path / 'mine'}: 1 images" in out and "is unknown to the registry" in out
    assert out.endswith(f"now run `anl index {tmp_path / 'mine'}`\n")


@pytest.mark.parametrize("name", [source.id for source in registry.load().values() if source.access in ("manual", "agreement")])
def test_by_hand_means_steps_and_no_download(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(name, "--accept-licence") == 2
    shown = capsys.readouterr()
    assert "1. " in shown.out and f"anl fetch {name} --from PATH --accept-licence" in shown.out
    assert "only be had by hand" in shown.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(registry.load()))
def test_every_card_fits_a_terminal_and_says_what_is_unknown(name, capsys):
    assert run(name) == 2
    out = capsys.readouterr().out
    assert all(len(line) <= 120 for line in out.splitlines())
    for word in ("licence", "terms", "format trap", "cite", "known from", "size"):
        assert f"\n  {word}" in out
    if not registry.get(name).verified:
        assert "not verified by us" in " ".join(out.split())


def test_json_of_one_and_of_all(capsys):
    assert run("--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == list(registry.load())
    assert run("forensynths", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["bytes"] == 20_052_866_587


def test_mistakes_are_one_line(capsys):
    assert run("cifar") == 2 and "there is no data set 'cifar'" in capsys.readouterr().err
    assert run("--accept-licence") == 2 and "which data set?" in capsys.readouterr().err
