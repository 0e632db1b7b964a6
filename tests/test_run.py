"""The whole life of a run: folder, repeat, resume, evaluate, start from another, and a user's mistakes."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import Callback
from omegaconf import open_dict

from octo_exp.errors import UserError
from octo_exp.run import run
from tests.configs import composed

SMALL = (
    "model=simplecnn",
    "model.width=4",
    "model.hidden=12",
    "logger=csv",
    "trainer.log_every_n_steps=1",
    "data.limit_train=200",
    "data.epochs=2",
)
# Dropout and stochastic rounding: everything random that a resumed run must repeat.
RANDOM = (
    "model=alexnet",
    "model.stages=[4,pool,6,pool]",
    "model.classifier=[16]",
    "logger=csv",
    "data.limit_train=200",
    "data.epochs=3",
    "data.augment={crop_padding:2,hflip:true}",
    "quant=octo",
    "quant.g.rounding=stochastic",
    "quant.clip.form=learned",
    "quant.skip=[]",
)


def go(folder: Path, *overrides: str, **nodes: Any) -> dict[str, Any]:
    cfg = composed(*overrides, save_dir=folder)
    with open_dict(cfg):
        for key, value in nodes.items():
            cfg[key].update(value)
    return run(cfg)


class StopAfterEpoch(Callback):
    """Ends the fit after one epoch, as an interruption at an epoch's boundary does."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


@pytest.fixture(scope="module")
def octo(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("octo")
    return folder, go(folder, *SMALL, "quant=octo", "hw=[systolic_16x16,tpu_v1]")


def test_the_folder_holds_what_a_run_leaves(octo):
    folder, results = octo
    on_disk = json.loads((folder / "results.json").read_text())
    assert on_disk == json.loads(json.dumps(results))
    for name in (
        "config.yaml",
        "metrics.csv",
        "cost.csv",
        "memory.csv",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    ):
        assert (folder / name).is_file(), name
    for profile in ("systolic_16x16", "tpu_v1"):
        parts = [results[f"cost/{profile}/{part}_cycles"] for part in ("forward", "grad_input", "grad_weight")]
        assert all(isinstance(part, int) and part > 0 for part in parts)
        assert sum(parts) == results[f"cost/{profile}/train_step_cycles"]
    assert results["cost/convention"] == "exact"
    assert results["cost/grad_input_form"] == "col2im"
    for key in ("test/acc", "val/acc", "train/images_per_s", "memory/saved_for_backward_mib", "memory/peak_mib"):
        assert results[key] > 0, key
    assert results["seed"] == 0
    assert results["seconds"] > 0
    assert {"octo-exp", "torch", "lightning", "python"} <= set(results["versions"])
    assert results["config"]["quant"]["name"] == "octo"
    assert len(results["weights_sha256"]) == 64
    assert results["kernel"] == "torch"
    assert results["quantized_layers"] == ["classifier.0"]
    assert 0.9 < results["quant/min_g_cosine"] <= 1.0


def test_metrics_are_in_the_csv(octo):
    header = (octo[0] / "metrics.csv").read_text().splitlines()[0].split(",")
    wanted = {"train/loss", "val/acc", "test/acc", "quant/classifier.0/g_cosine", "quant/classifier.0/x_saturated"}
    assert wanted <= set(header)


def test_same_seed_same_weights_and_another_seed_others(octo, tmp_path):
    again = go(tmp_path / "again", *SMALL, "quant=octo", "hw=[systolic_16x16,tpu_v1]")
    assert again["weights_sha256"] == octo[1]["weights_sha256"]
    other = go(tmp_path / "other", *SMALL, "quant=octo", "seed=1")
    assert other["weights_sha256"] != octo[1]["weights_sha256"]


def test_the_last_checkpoint_is_the_last_one_though_no_better(tmp_path):
    # Nothing is learnt, so the first epoch stays the best.
    go(tmp_path, *SMALL, "quant=fp32", "optim.optimizer.lr=0.0", "trainer.max_epochs=3")
    read = {name: torch.load(tmp_path / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last")}
    assert (read["best"]["epoch"], read["last"]["epoch"]) == (0, 2)


def test_the_seed_reaches_the_first_weights(tmp_path):
    still = (*SMALL, "quant=fp32", "optim.optimizer.lr=0.0")
    assert len({go(tmp_path / s, *still, f"seed={s}")["weights_sha256"] for s in ("0", "1")}) == 2


def test_a_finished_run_is_not_run_again(octo, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(octo[0], folder)
    settings = (*SMALL, "quant=octo", "hw=[systolic_16x16,tpu_v1]")
    before = (folder / "results.json").stat().st_mtime_ns
    assert go(folder, *settings)["weights_sha256"] == octo[1]["weights_sha256"]
    assert (folder / "results.json").stat().st_mtime_ns == before
    assert go(folder, *settings, "optim.optimizer.lr=0.01")["weights_sha256"] != octo[1]["weights_sha256"]


@pytest.mark.parametrize("place", ["", "checkpoints/last.ckpt"])
def test_evaluation_of_a_checkpoint_repeats_the_accuracy(octo, tmp_path, place):
    folder, results = octo
    evaluated = go(tmp_path, *SMALL, "quant=octo", "train=false", f"ckpt={folder / place}")
    assert evaluated["test/acc"] == results["test/acc"]
    assert evaluated["weights_sha256"] == results["weights_sha256"]
    assert evaluated["cost/systolic_32x32/train_step_cycles"] > 0


def test_resume_is_bit_identical_to_a_run_that_never_stopped(tmp_path):
    whole = go(tmp_path / "whole", *RANDOM)
    stop = {"callbacks": {"stop": {"_target_": f"{__name__}.StopAfterEpoch"}}}
    first = go(tmp_path / "part", *RANDOM, **stop)
    assert first["epochs"] == 1
    assert first["weights_sha256"] != whole["weights_sha256"]
    resumed = go(tmp_path / "rest", *RANDOM, f"ckpt={tmp_path / 'part'}")
    assert resumed["epochs"] == whole["epochs"] == 3
    # It went on: a run that began anew would end with the same weights.
    with (tmp_path / "rest" / "metrics.csv").open() as file:
        assert "0" not in {row["epoch"] for row in csv.DictReader(file)}
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["test/acc"] == whole["test/acc"]


def test_start_from_another_runs_weights(octo, tmp_path):
    folder, source = octo
    frozen = ("optim.optimizer.lr=0.0", "quant=int8")
    target = go(tmp_path / "same", *SMALL, *frozen, f"init_from={folder}")
    theirs = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ours = torch.load(tmp_path / "same/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(ours["net.features.0.weight"], theirs["net.features.0.weight"])
    assert abs(target["test/acc"] - source["test/acc"]) < 0.05
    with pytest.raises(UserError, match=r"data\.channels"):
        go(tmp_path / "rgb", *SMALL, "data.channels=3", f"init_from={folder}")
    with pytest.raises(UserError, match="another model"):
        go(tmp_path / "model", "model=lenet5", "logger=csv", "data.limit_train=200", f"init_from={folder}")


def test_the_head_starts_anew_where_the_classes_differ(octo, tmp_path, monkeypatch):
    import octo_exp.run as module

    build = module.build_module
    taken = {}

    def keep(cfg, datamodule):
        built = build(cfg, datamodule)
        taken["state"] = {k: v.clone() for k, v in built.module.net.state_dict().items()}
        return built

    monkeypatch.setattr(module, "build_module", keep)
    images = tmp_path / "data" / "five"
    make_image_folder(images, classes=5)
    go(
        tmp_path / "run",
        *SMALL,
        "data.limit_train=null",
        "data.source=imagefolder",
        f"data.root={tmp_path / 'data'}",
        "data.folder=five",
        "data.classes=5",
        "data.batch_size=8",
        f"init_from={octo[0]}",
    )
    theirs = torch.load(octo[0] / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(taken["state"]["classifier.0.weight"], theirs["net.classifier.0.weight"])
    assert taken["state"]["classifier.2.weight"].shape == (5, 12)


def make_image_folder(folder: Path, *, classes: int) -> None:
    from PIL import Image

    for split, count in (("train", 8), ("test", 2)):
        for label in range(classes):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            for index in range(count):
                Image.new("L", (8, 8), (label * 50 + index) % 256).save(target / f"{index}.png")


def test_transfer_trains_its_source_once(tmp_path):
    pair = ("data@source=digits", "source.limit_train=100", "source.epochs=1", "source.name=digits_source")
    first = go(tmp_path / "0", *SMALL, *pair)
    assert first["source"] == "digits_source"
    sources = list((tmp_path / "_sources").iterdir())
    assert len(sources) == 1
    assert str(first["init_from"]) == str(sources[0])
    written = (sources[0] / "results.json").stat().st_mtime_ns
    go(tmp_path / "1", *SMALL, *pair, "optim.optimizer.lr=0.002", "data.limit_train=150")
    go(tmp_path / "2", *SMALL, *pair, "data.limit_train=150")
    assert (sources[0] / "results.json").stat().st_mtime_ns == written
    alone = go(tmp_path / "3", *SMALL, "data@source=digits")
    assert alone["init_from"] is None
    assert alone["weights_sha256"] != first["weights_sha256"]


def test_a_transfer_is_evaluated_from_its_own_checkpoint(tmp_path):
    pair = ("data@source=digits", "source.limit_train=100", "source.epochs=1", "source.name=digits_source")
    trained = go(tmp_path / "0", *SMALL, *pair)
    evaluated = go(tmp_path / "1", *SMALL, *pair, "train=false", f"ckpt={tmp_path / '0'}")
    assert evaluated["test/acc"] == trained["test/acc"]
    assert evaluated["source"] == "digits_source"
    assert len(list((tmp_path / "_sources").iterdir())) == 1


class Draws(Callback):
    """Keeps the first random number of every batch."""

    seen: ClassVar[list[float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(torch.rand(1).item())


def test_randomness_is_keyed_by_batch_and_seed(tmp_path):
    spy = {"callbacks": {"draws": {"_target_": f"{__name__}.Draws"}}}
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Draws.seen.clear()
        go(tmp_path / name, *SMALL, "trainer.accumulate_grad_batches=2", "data.batch_size=50", f"seed={seed}", **spy)
        drawn.append(tuple(Draws.seen))
    assert len(set(drawn[0])) == len(drawn[0]) >= 4
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_the_checkpoint(tmp_path):
    class Poison(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.net.classifier[0].weight.data[0, 0] = float("nan")

    globals()["Poison"] = Poison
    with pytest.raises(UserError, match=r"loss is nan at epoch 1.*layer classifier\.0; .*last\.ckpt") as caught:
        go(tmp_path, *SMALL, "quant=octo", callbacks={"poison": {"_target_": f"{__name__}.Poison"}})
    assert "lower optim.optimizer.lr" in str(caught.value)
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
    assert not (tmp_path / "results.json").exists()


def test_wandb_is_offline_by_default_and_one_run_a_job(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    settings = [o for o in SMALL if o != "logger=csv"]
    for job in ("0", "1"):
        go(tmp_path / job, *settings, "trainer=debug")
    for job in ("0", "1"):
        runs = list((tmp_path / job / "wandb").glob("offline-run-*/*.wandb"))
        assert len(runs) == 1
        assert (tmp_path / job / "metrics.csv").is_file()
    records = inspect_wandb(runs[0])
    config = next(r["config"]["update"] for r in records if r["type"] == "config")
    assert config["quant"]["name"] == "int8"
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    wanted = {"test/acc", "cost/systolic_32x32/train_step_cycles", "memory/saved_for_backward_mib", "weights_sha256"}
    assert wanted <= set(summary)


def inspect_wandb(file: Path) -> list[dict[str, Any]]:
    """The records of an offline run, by W&B's own reader."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file.parent)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_int8_saves_less_for_the_backward_pass(tmp_path):
    sizes = {}
    for name in ("fp32", "int8"):
        settings = ("model=vgg11", "model.stages=[8,pool,16,16,pool]", "model.classifier=[16]", "trainer=debug")
        results = go(tmp_path / name, *settings, "logger=csv", "data.limit_train=200", f"quant={name}")
        rows = (tmp_path / name / "memory.csv").read_text().splitlines()[1:]
        sizes[name] = {row.split(",")[0]: int(row.split(",")[1]) for row in rows}
        assert results["memory/saved_for_backward_mib"] == pytest.approx(sum(sizes[name].values()) / 2**20)
    # The first layer is float and keeps its input, the others their input's codes and two scales; then, one int8 a
    # window where a pool follows, one bit an output where ReLU alone does.
    batch, scales = 64, 2 * 4
    kept = {name: sizes["int8"][name] for name in ("features.0", "features.3", "features.5")}
    assert kept == {
        "features.0": batch * (4 * 1 * 32 * 32 + 8 * 16 * 16),
        "features.3": batch * (8 * 16 * 16 + 16 * 16 * 16 // 8) + scales,
        "features.5": batch * (16 * 16 * 16 + 16 * 8 * 8) + scales,
    }
    assert sum(sizes["int8"].values()) < sum(sizes["fp32"].values()) / 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.num_classes=5"], "model gives 5 classes and digits has 10"),
        (["model.in_channels=3"], "model and data do not fit.*model.in_channels"),
        (["train=false"], "give ckpt="),
        (["ckpt=/nowhere/x.ckpt"], "ckpt=/nowhere/x.ckpt: no such file"),
        (["init_from=/nowhere"], "init_from=/nowhere: no such file or folder"),
        (["quant.skip=[first,last,classifier.0]"], "matches no layer"),
        (["quant.skip=[conv9]"], "'conv9' matches no layer; layers: features.0"),
        (["data.classes=7"], "class"),
        (["trainer.precision=bf16-true"], "quantised layers keep fp32 weights"),
    ],
)
def test_a_users_mistake_is_one_line_before_training(tmp_path, settings, message):
    with pytest.raises(Exception, match=message) as caught:
        go(tmp_path, *SMALL, *settings)
    error = caught.value
    while not isinstance(error, UserError):
        error = error.__cause__
        assert error is not None
    assert "\n" not in str(error)
    assert not (tmp_path / "checkpoints").exists()


def test_triton_is_refused_without_a_gpu_or_the_interpreter(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=r"kernel=triton needs"):
        go(tmp_path, *SMALL, "kernel=triton", "trainer.accelerator=cpu")


def test_unreadable_checkpoints_name_the_file(tmp_path, octo):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes((octo[0] / "checkpoints/last.ckpt").read_bytes()[:500])
    with pytest.raises(UserError, match=r"broken\.ckpt is not a readable checkpoint"):
        go(tmp_path / "a", *SMALL, "quant=octo", "train=false", f"ckpt={broken}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no checkpoints/last\.ckpt"):
        go(tmp_path / "b", *SMALL, f"init_from={tmp_path / 'empty'}")
    with pytest.raises(UserError, match="made by another model, scheme or data set"):
        go(tmp_path / "c", *SMALL, "quant=lac", "quant.skip=[]", "train=false", f"ckpt={octo[0]}")
