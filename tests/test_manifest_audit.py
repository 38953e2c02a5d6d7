import pandas as pd
import pyarrow as pa
import pytest

from anl import cli, manifest_audit
from anl.data import indexing, manifest
from anl.errors import UserError
from tests.data.million import rows
from tests.data.trees import encoded, genimage, write


def made_up(path, change=lambda table: table, count=2000):
    frame = rows(0, count).to_pandas()
    frame = change(frame[frame["generator"].isin(["real", "adm", "sd14"])].reset_index(drop=True))
    with manifest.writer(path, path.parent) as append:
        append(pa.Table.from_pandas(frame, schema=manifest.SCHEMA, preserve_index=False))
    return path


def same_format(table):
    table["format"], table["jpeg_quality"] = "PNG", None
    return table


def audit(path):
    said = []
    return manifest_audit.run(path, say=said.append), "\n".join(said)


def test_formats_that_give_the_class_away_are_suspect(tmp_path):
    suspects, said = audit(made_up(tmp_path / "m.parquet"))
    probe = pd.read_csv(tmp_path / "m.parquet.audit" / "format_probe.csv")
    assert (probe["balanced_accuracy"] > 0.99).all() and probe["suspect"].all() and len(probe) == 4
    assert any(line.startswith("adm: metadata alone (declared)") for line in suspects) and "suspect: adm" in said


def test_metadata_alike_in_both_classes_are_not(tmp_path):
    path = made_up(tmp_path / "m.parquet", same_format, 6000)
    audit(path)
    probe = pd.read_csv(tmp_path / "m.parquet.audit" / "format_probe.csv")
    assert probe["balanced_accuracy"].between(0.44, 0.56).all() and probe["suspect"].mean() <= 0.25
    assert ((probe["low"] < probe["balanced_accuracy"]) & (probe["balanced_accuracy"] < probe["high"])).all()


def test_a_size_of_its_own_is_found(tmp_path):
    def one_size(table):
        table = same_format(table)
        table.loc[table["generator"] == "sd14", ["width", "height"]] = 300
        return table

    audit(made_up(tmp_path / "m.parquet", one_size))
    probe = pd.read_csv(tmp_path / "m.parquet.audit" / "format_probe.csv").set_index(["generator", "features"])
    assert probe.loc[("sd14", "declared"), "balanced_accuracy"] > 0.99
    assert probe.loc[("adm", "declared"), "balanced_accuracy"] < 0.6


def test_repeated_images_do_not_help_the_probe(tmp_path):
    def repeated(table):
        table = same_format(table)
        half = table.iloc[:len(table) // 4]
        return pd.concat([half] * 4, ignore_index=True)  # sizes in bytes are unique to an image and could be learnt by heart

    audit(made_up(tmp_path / "m.parquet", repeated))
    probe = pd.read_csv(tmp_path / "m.parquet.audit" / "format_probe.csv")
    assert probe["balanced_accuracy"].mean() < 0.6


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """GenImage's tree with two images of equal bytes in train and test, a recompressed one, and a shared real."""
    folder = tmp_path_factory.mktemp("audit")
    same, shared = encoded(9501, size=64), encoded(9502, size=64)
    root = write(genimage(folder / "set", size=64), {
        "ADM/train/ai/same.png": same, "ADM/val/ai/same.png": same, "ADM/train/nature/shared.png": shared,
        "Midjourney/train/nature/shared.png": shared, "Midjourney/train/ai/look.png": encoded(9503, size=64),
        "Midjourney/val/ai/look.jpg": encoded(9503, "JPEG", 64, quality=90)})
    indexing.index(root, folder / "set.parquet", say=lambda line: None)
    return folder / "set.parquet"


def test_duplicates_near_duplicates_and_shared_reals_are_found(indexed):
    suspects, said = audit(indexed)
    folder = indexed.with_name("set.parquet.audit")
    equal = pd.read_csv(folder / "duplicates.csv")
    assert len(equal) == 4 and equal["across_splits"].sum() == 2 and not equal["across_classes"].any()
    near = pd.read_csv(folder / "near_duplicates.csv")
    assert near[["path", "path_other"]].apply(frozenset, axis=1).tolist() == [
        frozenset(("Midjourney/train/ai/look.png", "Midjourney/val/ai/look.jpg"))] and near["bits"][0] <= 3
    shared = pd.read_csv(folder / "shared_reals.csv").set_index("source_real")
    assert shared["also_in_other_sets"].tolist() == [1, 1] and shared.loc["adm", "generators"] == "adm"
    assert "2 images with equal bytes lie across splits: duplicates.csv" in suspects
    assert "1 pairs that look alike lie across splits: near_duplicates.csv" in suspects and "equal bytes: 4 images" in said
    sizes = pd.read_csv(folder / "distributions.csv")
    assert set(sizes["measure"]) == {"width", "height", "bytes_per_pixel", "jpeg_quality"}
    quality = sizes[sizes["measure"] == "jpeg_quality"]
    assert quality["n"].tolist() == [1] and quality["q50"].tolist() == [90]
    assert pd.read_csv(folder / "formats.csv")["images"].sum() == 30


def test_command_says_and_checks(indexed, capsys):
    assert cli.main(["audit", str(indexed)]) == 0
    printed = capsys.readouterr().out
    assert "format probe" in printed and "suspect: " in printed and "set.parquet.audit: " in printed
    assert cli.main(["audit", str(indexed), "--check"]) == 1
    assert cli.main(["audit", str(indexed.with_name("no.parquet"))]) == 2
    assert "no.parquet is missing; make it with `anl index" in capsys.readouterr().err


def test_without_looks_near_duplicates_are_said_to_be_unknown(indexed, tmp_path):
    indexing.index(indexed.with_suffix(""), tmp_path / "m.parquet", decode=False, say=lambda line: None)
    assert "30 images were indexed with --headers" in audit(tmp_path / "m.parquet")[1]


def test_an_empty_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        manifest_audit.run(made_up(tmp_path / "m.parquet", lambda table: table.iloc[:0], 10))
