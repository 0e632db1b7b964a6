import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw import step_memory, training_step_cost
from octo_exp.runs.cost_plots import PARTS, cost_table, layer_parts, save_cost_figure, text_of
from octo_exp.workload import Buffer, VectorWork
from tests.hw.helpers import gemm, machine, workload


def report(layers=3, **change):
    gemms = [gemm(layer=f"layer{index}", m=10 * (index + 1)) for index in range(layers)]
    gemms += [gemm(layer="layer0", role="grad_weight")]
    beside = VectorWork(layer="norm", role="output", kind="norm", operations=1000, bytes_read=4000, bytes_written=4000)
    return training_step_cost(workload(*gemms, vector=(beside,)), machine(**change), convention="exact")


def test_parts_of_the_layers_are_those_of_the_report():
    priced = report(vector_lanes=4)
    layers = layer_parts(priced)
    assert list(layers) == ["layer0", "layer1", "layer2", "norm"]
    total = {part: sum(parts[part] for parts in layers.values()) for part in PARTS}
    assert total["output"] == priced.cycles_of("output")
    assert total["grad_weight"] == priced.cycles_of("grad_weight")
    assert total["vector"] == priced.vector_cycles == 250
    assert total["stall"] == priced.stall_cycles > 0
    assert sum(total.values()) == priced.total_cycles


def test_the_table_shows_every_layer_and_the_sum():
    priced = report(vector_lanes=4)
    lines = text_of(cost_table(priced)).splitlines()
    assert "exact, col2im" in lines[0]
    rows = {line.split()[1]: line for line in lines if line.startswith("│")}
    assert set(rows) == {"layer0", "layer1", "layer2", "norm", "total"}
    assert f" {priced.cycles_of('output'):,} " in rows["total"]
    assert rows["layer0"].count("█") == 24


def test_work_without_a_vector_unit_is_no_part():
    assert sum(parts["vector"] for parts in layer_parts(report()).values()) == 0


@pytest.mark.parametrize("layers", [1, 60])
def test_the_picture_is_drawn_for_few_layers_and_for_many(tmp_path, layers):
    buffers = [Buffer(layer="a", kind=kind, bytes=2**20, first=0, last=4) for kind in ("weight", "mask")]
    path = tmp_path / "new" / "cost.png"
    save_cost_figure(path, {"a": report(layers), "b": report(layers, vector_lanes=1)}, step_memory(buffers))
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    height = int.from_bytes(content[20:24], "big")
    # A panel of 60 layers shows the largest and the sum of the others.
    assert height < 1200


def test_the_smallest_layers_of_a_deep_network_share_a_bar(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    seen = []
    draw = Axes.barh
    monkeypatch.setattr(Axes, "barh", lambda self, y, width, **o: seen.append((y, width)) or draw(self, y, width, **o))
    priced = report(60)
    save_cost_figure(tmp_path / "cost.png", {"a": priced}, None)
    names, widths = seen[0]
    assert names[-1].endswith("others)")
    assert len(names) == 25
    assert sum(widths) == pytest.approx(priced.cycles_of("output") / 1e6)


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cost\.png cannot be written: .*; choose another output folder$"):
        save_cost_figure(tmp_path / "file" / "cost.png", {"a": report()}, None)
