from dataclasses import dataclass, field

import pytest

from anl.errors import UserError
from anl.typed import build


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    more: dict[str, Inner] = field(default_factory=dict)
    note: str | None = None


def test_plain_values_become_dataclasses():
    made = build(Outer, {"inner": {"count": 2, "share": 1}, "more": {"a": {"count": 3, "names": ["x"]}}, "note": None}, "f")
    assert made == Outer(Inner(2, 1.0), {"a": Inner(3, 0.5, ["x"])}) and isinstance(made.inner.share, float)
    assert build(Outer, {"inner": {"count": 2}, "more": {}}, "f").more == {}


@pytest.mark.parametrize("value, message", [
    ({"inner": {"count": 2.5}}, "f: 'inner.count' must be a whole number, not 2.5"),
    ({"inner": {}}, "f: the key 'inner.count' is missing"),
    ({"inner": {"count": 1, "size": 2}}, "f: unknown key 'inner.size'"),
    ({"inner": {"count": 1, "names": ["x", 3]}}, "f: 'inner.names.1' must be a word, not 3"),
    ({"inner": []}, "f: 'inner' must be a mapping"),
    ({"inner": {"count": True}}, "must be a whole number, not True")])
def test_a_wrong_value_is_named_by_its_place(value, message):
    with pytest.raises(UserError) as caught:
        build(Outer, value, "f")
    assert message in str(caught.value)
