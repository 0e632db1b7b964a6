import csv
import json

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from octo_exp.callbacks import cost
from octo_exp.callbacks.cost import CostCallback
from octo_exp.errors import UserError
from octo_exp.hw import HardwareProfile, training_step_cost
from octo_exp.trace import trace

pytestmark = [
    # Lightning 2.6 asks torch 2.13 in a way that torch has deprecated.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]
TOTALS = ("forward_cycles", "grad_input_cycles", "grad_weight_cycles", "train_step_cycles", "train_step_ms")


def profile(side):
    given = {
        "rows": side,
        "cols": side,
        "dataflow": "os",
        "frequency_mhz": 100,
        "sram_ifmap_kib": 64,
        "sram_filter_kib": 64,
        "sram_ofmap_kib": 64,
        "dram_bytes_per_cycle": 10,
    }
    sources = {name: {"source": "test", "status": "assumed"} for name in given}
    return HardwareProfile(name=f"square_{side}", quoted_tops=None, sources=sources, notes="", **given)


PROFILES = {"small": profile(4), "large": profile(16)}


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


def callback(convention="scalesim", form="col2im"):
    return CostCallback(profiles=PROFILES, convention=convention, grad_input_form=form)


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
    return {name: training_step_cost(workload, item, convention=convention) for name, item in PROFILES.items()}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_results_hold_the_totals_of_every_profile(tmp_path):
    priced, lit = callback(), Lit()
    trainer(tmp_path, priced).fit(lit, datamodule=Data())
    want = {
        f"cost/{name}/{total}": getattr(report, total) for name, report in expected(lit.net).items() for total in TOTALS
    }
    want |= {"cost/convention": "scalesim", "cost/grad_input_form": "col2im", "cost/batch_size": 4}
    assert priced.results == want
    for name in PROFILES:
        parts = [priced.results[f"cost/{name}/{role}_cycles"] for role in ("forward", "grad_input", "grad_weight")]
        assert sum(parts) == priced.results[f"cost/{name}/train_step_cycles"] > 0
    json.dumps(priced.results)


def test_convention_and_form_reach_the_figures(tmp_path):
    priced, lit = callback("true", "im2col"), Lit()
    trainer(tmp_path, priced).fit(lit, datamodule=Data())
    assert priced.reports == expected(lit.net, "im2col", "true")
    assert priced.results["cost/convention"] == "true"
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


class FakeWandb(WandbLogger):
    """A W&B logger that opens no run and remembers what it is given."""

    def __init__(self):
        self.summary, self.tables = {}, {}

    @property
    def experiment(self):
        return self

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables[key] = (columns, data)


def test_wandb_gets_a_summary_and_a_table(tmp_path):
    logger = FakeWandb()
    run = trainer(tmp_path, loggers=[])
    run.loggers = [logger]
    run.datamodule = Data()
    priced = callback()
    priced.on_fit_start(run, Lit())
    assert logger.summary == priced.results
    columns, data = logger.tables["cost/layers"]
    rows = read(tmp_path / "cost.csv")
    assert [dict(zip(columns, map(str, row), strict=True)) for row in data] == rows


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
    with pytest.raises(UserError, match=r"cannot write .*cost.csv"):
        callback().on_fit_start(run, Lit())
