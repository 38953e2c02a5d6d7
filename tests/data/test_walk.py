import os

from anl.data.walk import survey, walk


def test_folders_that_link_to_one_another_are_entered_once_each(tmp_path):
    for one in range(6):
        (tmp_path / f"f{one}").mkdir()
        (tmp_path / f"f{one}/a.png").write_bytes(b"x")
        for other in range(6):
            if other != one:
                (tmp_path / f"f{one}/to{other}").symlink_to(tmp_path / f"f{other}", target_is_directory=True)
    found = list(walk(tmp_path))
    assert sorted(entries.path for entries in found) == ["", *(f"f{number}" for number in range(6))]
    problems = [problem for entries in found for problem in entries.problems]
    assert len(problems) == 30 and all("listed" in reason for _, reason in problems)


def test_a_real_folder_keeps_its_own_path_where_a_link_comes_first(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.png").write_bytes(b"x")
    (tmp_path / "alias").symlink_to("real", target_is_directory=True)
    assert list(survey(tmp_path)[0]) == ["real"]


def test_a_folder_elsewhere_is_entered_through_its_first_link(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    (outside / "below").mkdir(parents=True)
    (outside / "below/a.png").write_bytes(b"x")
    for name in ("one", "two"):
        os.symlink(outside, root / name, target_is_directory=True)
    found = list(walk(root))
    assert [entries.path for entries in found if entries.files] == ["one/below"]
    assert [path for entries in found for path, _ in entries.problems] == ["two"]
