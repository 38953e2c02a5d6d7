"""Which number format is really computed in."""

import pytest
import torch

from anl import arithmetic, processes, train


@pytest.mark.parametrize("able", [True, False])
def test_bf16_is_used_where_the_processor_has_it_and_nothing_else_is_changed(monkeypatch, able):
    monkeypatch.setattr(arithmetic, "cpu_has_bf16", lambda: able)
    assert arithmetic.in_use("bf16") == ("bf16" if able else "fp32")
    assert [arithmetic.in_use(name) for name in ("fp32", "fp16")] == ["fp32", "fp16"]
    assert arithmetic.in_use("bf16", "cuda") == "bf16" and arithmetic.in_use("bf16", torch.device("cuda:1")) == "bf16"


def test_what_this_processor_has_is_found():
    found = arithmetic.cpu_has_bf16()
    assert found is bool(found) and (found or torch.backends.cpu.get_cpu_capability() not in ("AMX", "AVX512_VNNI"))


def test_training_asks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []
    monkeypatch.setattr(arithmetic, "in_use", lambda *words: asked.append(words) or "fp32")
    monkeypatch.setattr(processes, "accelerator", lambda precision, log_with: precision)
    assert train._accelerator("bf16") == "fp32" and asked == [("bf16", "cpu")]
