"""What `anl compare` measured on public test sets, as stored under results/use, for the book's page on use."""

import shutil
from pathlib import Path

from anl.files import write_text
from anl.origins import Origin
from anl.tables import copy_results, value_texts

SET, PACKAGED = "cifake", "packaged"
COMMAND = "anl compare data/sources/cifake.parquet --peer PYTHON"


def gather(results, sections, target):
    """Copy the stored tables of CIFAKE to `target`/cifake and its sections of `sections` beside them, empty where nothing
    was measured; returns {key: text} for the prose."""
    source, target = Path(results) / SET, Path(target)
    page, packaged = target / f"{SET}.md.txt", target / SET / f"{PACKAGED}.md.txt"
    if not (source / "values.json").is_file():
        write_text(page, "\n")
        return {}
    copy_results(source, target / SET, {}, Origin(f"{target.name}/{SET}", COMMAND, first=f"anl fetch {SET} --accept-licence"))
    shutil.copyfile(Path(sections) / page.name, page)
    if (source / "difference.csv").is_file():
        shutil.copyfile(Path(sections) / packaged.name, packaged)
    else:  # the packaged detector was left out
        write_text(packaged, "\n")
    return value_texts(source / "values.json", f"make it with `{COMMAND}`")
