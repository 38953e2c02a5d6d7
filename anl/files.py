"""CSV files, and the functions of `anl.io` under the names that older modules use."""

import csv

from anl.io import atomic_file as whole_file
from anl.io import identity, read_json, rounded, sha256_of, write_json, write_text

__all__ = ["identity", "read_json", "rounded", "sha256_of", "whole_file", "write_csv", "write_json", "write_text"]


def write_csv(path, rows, columns=None):
    """Write a list of dicts as CSV with fixed digits; `columns` fixes their order (default: that of the first row)."""
    columns = columns or list(rows[0])
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: rounded(value) for key, value in row.items()} for row in rows])
