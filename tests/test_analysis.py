from anl import analysis


def test_value_text():
    assert analysis.value(0.8314, 0.79, 0.87, n=3)["text"] == "0.831 [0.790, 0.870]"
    assert analysis.value(0.5)["text"] == "0.500"
