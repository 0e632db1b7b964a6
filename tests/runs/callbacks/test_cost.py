import csv
import json

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from octo_exp.base.errors import UserError
from octo_exp.hw import step_memory, training_step_cost
from octo_exp.runs.callbacks import cost
from octo_exp.runs.callbacks.cost import CostCallback
from octo_exp.tracing import trace
from tests.hw.helpers import machine, table

pytestmark = [
    # Lightning 2.6 asks torch 2.13 in a way that torch has deprecated.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]
ENERGY = table()
ASSUMED = {
    "cost/convention": "scalesim",
    "cost/grad_input_form": "col2im",
    "cost/batch_size": 4,
    "cost/optimizer": "SGD",
    "cost/energy_table": "test",
}
PROFILES = {
    "small": machine(rows=4, cols=4, vector_lanes=4, fp32_macs_per_pe_cycle=0.25),
    "large": machine(rows=16, cols=16, vector_lanes=16, fp32_macs_per_pe_cycle=0.25),
}


class Data(lightning.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.input_shape = (1, 6, 6)
        self.batch_size = 4

    def _loader(self):
        images = torch.randn(8, *self.input_shape)
        return DataLoader(TensorDataset(images, torch.arange(8) % 3), batch_size=self.batch_size)

    train_dataloader = test_dataloader = _loader


class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def callback(convention="scalesim", form="col2im", energy=ENERGY):
    return CostCallback(profiles=PROFILES, convention=convention, grad_input_form=form, energy=energy)


def trainer(folder, *callbacks, loggers=()):
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        callbacks=list(callbacks),
        logger=list(loggers),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def expected(net, form="col2im", convention="scalesim"):
    workload = trace(net, (1, 6, 6), batch_size=4, grad_input_form=form)
    return {
        name: training_step_cost(workload, item, convention=convention, energy=table())
        for name, item in PROFILES.items()
    }


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_results_hold_the_totals_of_every_profile(tmp_path):
    priced, lit = callback(), Lit()
    trainer(tmp_path, priced).fit(lit, datamodule=Data())
    want = {
        f"cost/{name}/{total}": value
        for name, report in expected(lit.net).items()
        for total, value in report.totals().items()
    }
    cycles = {key: value for key, value in priced.results.items() if key.count("/") == 2}
    assert cycles == want
    assert {key: priced.results[key] for key in ASSUMED} == ASSUMED
    for name in PROFILES:
        parts = [priced.results[f"cost/{name}/{role}_cycles"] for role in ("forward", "grad_input", "grad_weight")]
        assert sum(parts) == priced.results[f"cost/{name}/train_step_cycles"] > 0
    json.dumps(priced.results)


def test_convention_and_form_reach_the_figures(tmp_path):
    priced, lit = callback("exact", "im2col"), Lit()
    trainer(tmp_path, priced).fit(lit, datamodule=Data())
    assert priced.reports == expected(lit.net, "im2col", "exact")
    assert priced.results["cost/convention"] == "exact"
    assert priced.results["cost/grad_input_form"] == "im2col"


def test_csv_has_a_row_for_each_profile_layer_and_role(tmp_path):
    priced = callback()
    trainer(tmp_path / "new", priced).fit(Lit(), datamodule=Data())
    rows = read(tmp_path / "new" / "cost.csv")
    one = [("0", "output"), ("0", "grad_weight"), ("3", "output"), ("3", "grad_input"), ("3", "grad_weight")]
    found = [(row["profile"], row["layer"], row["role"]) for row in rows]
    assert found == [(name, *key) for name in PROFILES for key in one]
    for name in PROFILES:
        cycles = sum(int(row["cycles"]) for row in rows if row["profile"] == name)
        assert cycles == priced.results[f"cost/{name}/train_step_cycles"]
    first = rows[0]
    assert [first[key] for key in ("m", "n", "k", "count", "macs")] == ["64", "4", "9", "1", str(64 * 4 * 9)]
    assert (first["convention"], first["grad_input_form"], first["batch_size"]) == ("scalesim", "col2im", "4")


def test_a_frozen_layer_has_no_grad_weight(tmp_path):
    lit = Lit()
    lit.net[3].weight.requires_grad_(False)
    trainer(tmp_path, callback()).fit(lit, datamodule=Data())
    roles = [(row["layer"], row["role"]) for row in read(tmp_path / "cost.csv") if row["profile"] == "small"]
    assert roles == [("0", "output"), ("0", "grad_weight"), ("3", "output"), ("3", "grad_input")]


def test_priced_once_for_a_fit_and_its_test(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cost, "trace", lambda *args, **options: seen.append(args) or trace(*args, **options))
    run = trainer(tmp_path, callback())
    lit = Lit()
    run.fit(lit, datamodule=Data())
    run.test(lit, datamodule=Data(), verbose=False)
    assert len(seen) == 1


def test_evaluation_alone_prices_the_same_step(tmp_path):
    fitted, tested, lit = callback(), callback(), Lit()
    trainer(tmp_path, tested).test(lit, datamodule=Data(), verbose=False)
    trainer(tmp_path, fitted).fit(lit, datamodule=Data())
    assert tested.results == fitted.results


def test_csv_logger_gets_the_numbers_as_hyperparameters(tmp_path):
    priced = callback()
    logger = CSVLogger(tmp_path, name=None, version="run")
    trainer(tmp_path, priced, loggers=[logger]).fit(Lit(), datamodule=Data())
    logged = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    assert logged == {key: value for key, value in priced.results.items() if not isinstance(value, str)}


def test_memory_is_that_of_the_trained_step(tmp_path):
    priced, lit = callback(), Lit()
    trainer(tmp_path, priced).fit(lit, datamodule=Data())
    memory = step_memory(trace(lit.net, (1, 6, 6), batch_size=4, grad_input_form="col2im").buffers)
    assert priced.results["cost/peak_memory_mib"] == memory.peak_bytes / 2**20 > 0
    assert priced.results["cost/kept_for_backward_mib"] == memory.kept_bytes / 2**20 > 0
    kinds = [value for key, value in priced.results.items() if key.startswith("cost/peak_") and "memory" not in key]
    assert sum(kinds) == pytest.approx(priced.results["cost/peak_memory_mib"])


class Adam(Lit):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def test_the_trainers_optimizer_is_priced(tmp_path):
    plain, adam, lit = callback("exact"), callback("exact"), Adam()
    trainer(tmp_path / "plain", plain).fit(Lit(), datamodule=Data())
    trainer(tmp_path / "adam", adam).fit(lit, datamodule=Data())
    assert adam.results["cost/optimizer"] == "Adam"
    state = 8 * sum(parameter.numel() for parameter in lit.net.parameters())
    assert adam.results["cost/peak_optimizer_mib"] == state / 2**20
    assert plain.results["cost/peak_optimizer_mib"] == 0
    assert adam.results["cost/small/vector_cycles"] > plain.results["cost/small/vector_cycles"]


def test_autocast_makes_float_layers_narrow(tmp_path):
    run = lightning.Trainer(default_root_dir=tmp_path, accelerator="cpu", precision="bf16-mixed", logger=False)
    run.datamodule = Data()
    profiles = {"wide": machine(vector_lanes=1, bf16_macs_per_pe_cycle=0.5)}
    priced = CostCallback(profiles=profiles, convention="exact", grad_input_form="col2im", energy=None)
    priced.on_fit_start(run, Lit())
    assert {row.bits_a for row in priced.reports["wide"].rows} == {16}
    assert {row.unit for row in priced.reports["wide"].rows} == {"array"}
    assert "cost/wide/energy_uj" not in priced.results
    assert priced.results["cost/energy_table"] is None


def test_no_hook_runs_in_training():
    hooks = [name for name in vars(CostCallback) if name.startswith("on_")]
    assert hooks == ["on_fit_start", "on_test_start"]


def test_vector_work_has_rows_of_its_own(tmp_path):
    priced = callback("exact")
    trainer(tmp_path, priced).fit(Lit(), datamodule=Data())
    rows = [row for row in read(tmp_path / "cost_vector.csv") if row["profile"] == "small"]
    assert {row["kind"] for row in rows} == {"elementwise", "optimizer"}
    assert sum(int(row["cycles"]) for row in rows) == priced.results["cost/small/vector_cycles"] > 0
    assert rows[0]["convention"] == "exact"


def test_the_log_has_a_table_of_layers_and_the_folder_a_picture(tmp_path, caplog):
    with caplog.at_level("INFO", logger="octo_exp.runs.callbacks.cost"):
        priced = callback("exact")
        trainer(tmp_path, priced).fit(Lit(), datamodule=Data())
    tables = [record.message for record in caplog.records if record.name == "octo_exp.runs.callbacks.cost"]
    assert len(tables) == len(PROFILES)
    lines = tables[0].splitlines()
    (first,) = (line for line in lines if line.startswith("│ 0 "))
    report = priced.reports["small"]
    forward = next(row.cycles for row in report.rows if (row.layer, row.role) == ("0", "output"))
    assert f"{forward:,}" in first
    assert "█" in first
    (total,) = (line for line in lines if line.startswith("│ total "))
    assert f"{report.cycles_of('grad_weight'):,}" in total
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


class FakeWandb(WandbLogger):
    """A W&B logger that opens no run and remembers what it is given."""

    def __init__(self):
        self.summary, self.tables, self.images = {}, {}, {}

    @property
    def experiment(self):
        return self

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables[key] = (columns, data)

    def log_image(self, key, images, step=None):
        self.images[key] = images


def test_wandb_gets_a_summary_a_table_and_a_picture(tmp_path):
    logger = FakeWandb()
    run = trainer(tmp_path, loggers=[])
    run.loggers = [logger]
    run.datamodule = Data()
    priced = callback()
    priced.on_fit_start(run, Lit())
    assert logger.summary == priced.results
    columns, data = logger.tables["cost/layers"]
    rows = read(tmp_path / "cost.csv")
    # The convention scalesim has no energy.
    told = [["" if value is None else str(value) for value in row] for row in data]
    assert [dict(zip(columns, row, strict=True)) for row in told] == rows
    assert logger.images == {"cost/bars": [str(tmp_path / "cost.png")]}


def test_a_module_without_a_net_is_refused(tmp_path):
    run = trainer(tmp_path)
    run.datamodule = Data()
    with pytest.raises(UserError, match="LightningModule has no module 'net'"):
        callback().on_fit_start(run, lightning.LightningModule())


@pytest.mark.parametrize("name", ["input_shape", "batch_size"])
def test_a_datamodule_without_its_facts_is_refused(tmp_path, name):
    run = trainer(tmp_path)
    run.datamodule = Data()
    delattr(run.datamodule, name)
    with pytest.raises(UserError, match=f"datamodule has no '{name}'"):
        callback().on_fit_start(run, Lit())


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    run = trainer(tmp_path / "file")
    run.datamodule = Data()
    with pytest.raises(UserError, match=r"cost\.csv cannot be written: .*; choose another output folder$"):
        callback().on_fit_start(run, Lit())
