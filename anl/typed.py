"""Plain values of a YAML file as typed dataclasses, checked key by key."""

import dataclasses
import types
import typing

from anl.errors import UserError


def build(kind, value, origin, place=""):
    """`value` (mappings, lists, scalars of YAML) as `kind`: a dataclass, or a list or dict of one. `place` names it in messages.

    An entry that equals its default may be empty. Raises UserError naming the file `origin`, the key and the mend.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{origin}: '{place.rstrip('.')}' must be a mapping, not {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = [key for key in value if key not in hints]
        if unknown:
            raise UserError(f"{origin}: unknown key '{place}{unknown[0]}'; known here: {', '.join(hints)}")
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in value
                   and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
        if missing:
            raise UserError(f"{origin}: the key '{place}{missing[0]}' is missing")
        empty = {f.name: f.default_factory() for f in dataclasses.fields(kind) if f.default_factory is not dataclasses.MISSING}
        return kind(**{key: item if item == empty.get(key) else build(hints[key], item, origin, f"{place}{key}.")
                       for key, item in value.items()})
    here = place.rstrip(".")
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict) or not value:
            raise UserError(f"{origin}: '{here}' must be a mapping with at least one entry")
        inner = typing.get_args(kind)[1]
        return {key: build(inner, item, origin, f"{place}{key}.") for key, item in value.items()}
    if typing.get_origin(kind) is list:
        if not isinstance(value, list) or not value:
            raise UserError(f"{origin}: '{here}' must be a list with at least one entry, not {value!r}")
        inner = typing.get_args(kind)[0]
        return [build(inner, item, origin, f"{place}{index}.") for index, item in enumerate(value)]
    if isinstance(kind, types.UnionType):
        kind = next(item for item in typing.get_args(kind) if item is not type(None))
        return None if value is None else build(kind, value, origin, place)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
        raise UserError(f"{origin}: '{here}' must be {words[kind]}, not {value!r}")
    return value
