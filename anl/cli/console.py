"""Shared by all commands: the configuration that the command line describes, paths of results, and tables on a terminal."""

import sys
from dataclasses import dataclass
from pathlib import Path

from anl.io import UserError, identity, printable, write_text

FREE = ("run.", "profile=", "training.checkpoint_seconds=")  # settings that do not affect results


@dataclass(frozen=True)
class Options:
    """The options before the command."""

    profile: str | None = None
    limit: int | None = None
    settings: tuple[str, ...] = ()


def configuration(ctx, making=()):
    """The Config that the options before the command describe; `making`: see `anl.cli.limit.limited`."""
    from anl.cli.limit import limited
    from anl.config import load_config

    chosen = ctx.find_root().obj
    config = load_config(profile=chosen.profile, overrides=chosen.settings)
    deciding = [text for text in chosen.settings if not text.startswith(FREE)]
    if deciding and not any(text.startswith("profile=") for text in chosen.settings):
        name = f"{config.profile}-{identity(sorted(deciding))[:6]}"
        print(f"profile {name}: {config.profile} with {', '.join(deciding)}", file=sys.stderr)
        config = config.override(profile=name)
    return limited(config, chosen.limit, making) if chosen.limit else config


def has_configuration(ctx):
    return bool(ctx.find_root().obj.profile) or Path("params.yaml").is_file()


def parse_seeds(text):
    """'0,2' -> [0, 2]; None stays None."""
    try:
        seeds = [] if text is None else [int(part) for part in dict.fromkeys(text.split(","))]
    except ValueError:
        raise UserError(f"--seeds {text}: write whole numbers with commas, for example --seeds 0,1,2") from None
    if outside := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise UserError(f"--seeds {outside[0]}: a seed is from 0 to 2^32 - 1; correct it")
    return None if text is None else seeds


def result(config, *parts):
    """A path among the results of a profile."""
    return Path(config.run.results, config.profile, *parts)


def write_csv(path, table):
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def print_table(columns, rows):
    """Print a table, on a terminal as wide as the terminal, else as wide as its content. Without `columns` it has no header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD if columns else None, show_header=bool(columns))
    for row in rows:
        table.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    Console(width=None if sys.stdout.isatty() else 10_000 if columns else 110, highlight=False).print(table)


def print_frame(table, title):
    """Print a DataFrame under its title, numbers with three digits."""
    print(title)
    rows = table.astype(object).where(table.notna(), None).to_numpy().tolist()
    print_table([str(name) for name in table],
                [[f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
