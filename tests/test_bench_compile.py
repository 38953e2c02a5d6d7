import pytest

from anl import bench_compile

SETTINGS = {"backbone": "test_resnet", "stride": 8, "stem_width": 8, "patch": 4, "attention_dim": 8}


def test_a_row_a_call_with_what_compiling_wins(monkeypatch):
    monkeypatch.setattr(bench_compile.torch, "compile", lambda model: model)
    table = bench_compile.compile_table(SETTINGS, 32, 4, "fp32", batches=(2,), repeats=2)
    assert list(table["what"]) == ["forward", "training step"] and (table["speed_over_eager"] > 0).all()
    assert table["failed"].isna().all() and (table["seconds_to_compile"] > 0).all()
    never = table[table["compiled_milliseconds"] >= table["eager_milliseconds"]]
    assert never["steps_to_pay"].isna().all()


@pytest.mark.filterwarnings("ignore")
def test_a_machine_without_a_compiler_gets_the_reason(monkeypatch):
    def broken(model):
        def call(x):
            raise RuntimeError("no C++ compiler found\nand more")
        return call

    monkeypatch.setattr(bench_compile.torch, "compile", broken)
    monkeypatch.setattr(bench_compile.cost, "stepper", lambda models, *rest: {"affinity": lambda: next(iter(models.values()))(None)})
    table = bench_compile.compile_table(SETTINGS, 32, 4, "fp32", batches=(2,), repeats=2)
    assert set(table["failed"]) == {"no C++ compiler found"} and table["speed_over_eager"].isna().all()
