"""Every wrong command line is answered by one line that names what is wrong and what is right."""

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from octo_exp.base.errors import ConfigError
from octo_exp.config import arguments, check_arguments
from octo_exp.config.options import ConfigSpace, job_part

UNKNOWN = {
    "model=vgg1": "unknown model 'vgg1': did you mean 'vgg11'? options: lenet5, simplecnn, vgg11",
    "model=resnet": "unknown model 'resnet': did you mean 'lenet5'? options: lenet5, simplecnn, vgg11",
    "model=zzz": "unknown model 'zzz': options: lenet5, simplecnn, vgg11",
    "hw=[tpu_v1,tpu_v2]": "unknown hw 'tpu_v2': did you mean 'tpu_v1'? options: systolic_32x32, tpu_v1",
    "data@source=mnst": "unknown data@source 'mnst': did you mean 'mnist'?",
    "experiment=clam": "unknown experiment 'clam': did you mean 'claim'?",
    "+experiment=clam": "unknown experiment 'clam': did you mean 'claim'?",
    "modl=vgg11": "unknown group or key 'modl': did you mean 'model'?",
    "data@sorce=mnist": "unknown group 'data@sorce': did you mean 'data@source'?",
    "+data@probe=mnist": "unknown group 'data@probe': known there: callbacks, data, data@source",
    "source=mnist": "unknown group or key 'source': did you mean 'data@source'?",
    "+trainer.max_epoch=3": "unknown key 'trainer.max_epoch': did you mean 'trainer.max_epochs'?",
    "++trainer.max_epoch=3": "unknown key 'trainer.max_epoch': did you mean 'trainer.max_epochs'?",
    "trainer.zzz=3": "known there: accelerator",
    "trainer.fast_dev=true": "what else it takes is added as +trainer.fast_dev=<value>",
    "+optim.optimizer.weight_deca=1": "did you mean 'optim.optimizer.weight_decay'?",
    "+logger.wandb.projects=x": "unknown key 'logger.wandb.projects': did you mean 'logger.wandb.project'?",
    "+data.foo=1": "unknown key 'data.foo'",
    "trainer.max_epoch=1": "unknown key 'trainer.max_epoch': did you mean 'trainer.max_epochs'?",
    "max_epochs=1": "unknown group or key 'max_epochs': did you mean 'trainer.max_epochs'?",
    "optim.lr=1": "unknown key 'optim.lr': did you mean 'optim.optimizer.lr'?",
    "optim.optimizer={lrr:1}": "unknown key 'optim.optimizer.lrr': did you mean 'optim.optimizer.lr'?",
    "model.dropout=0.5": "unknown key 'model.dropout': known there: classes, name, width",
    "quant.overides.conv1=fp32": "unknown key 'quant.overides.conv1': did you mean 'quant.overrides'?",
    "+typo=1": "unknown group or key 'typo': known there: callbacks, ckpt, data",
    "++sed=1": "unknown group or key 'sed': did you mean 'seed'?",
    "+trainer.max_epoch=1": "unknown key 'trainer.max_epoch': did you mean 'trainer.max_epochs'?",
    "~callbacks.memry": "unknown key 'callbacks.memry': did you mean 'callbacks.memory'?",
    "~callbacks ~callbacks.memory": "unknown key 'callbacks.memory'",
    "hydra.run.dri=x": "unknown key 'hydra.run.dri': did you mean 'hydra.run.dir'?",
    "+hydra.run.folder=x": "unknown key 'hydra.run.folder': ",
    "hydra/launcher=basik": "unknown hydra/launcher 'basik': did you mean 'basic'?",
    "-m model=lenet5,vgg1": "unknown model 'vgg1': did you mean 'vgg11'?",
    "-m model=choice(vgg1,lenet5)": "unknown model 'vgg1': did you mean 'vgg11'?",
    "-m model=simplecnn,vgg11 model.width=8": "unknown key 'model.width': known there: classes, dropout, name",
    "ckpt.path=x": "ckpt.path: ckpt is null here; write ckpt=<value>",
    "-cn trian": "unknown config 'trian': did you mean 'train'?",
    "--help model=vgg1": "unknown model 'vgg1': did you mean 'vgg11'?",
    "--cfg job model=vgg1": "unknown model 'vgg1': did you mean 'vgg11'?",
}
WRONG_TYPE = {
    "seed=abc": "seed expects an integer from 0 to 4294967295, got 'abc'",
    "seed='5'": "seed expects an integer from 0 to 4294967295, got '5'",
    "seed=1.5": "seed expects an integer from 0 to 4294967295, got 1.5",
    "seed=true": "seed expects an integer from 0 to 4294967295, got true",
    "seed=null": "seed expects an integer from 0 to 4294967295, got null",
    "train=1": "train expects true or false, got 1",
    "train=yes": "train expects true or false, got 'yes'",
    "optim.optimizer.lr=fast": "optim.optimizer.lr expects a number, got 'fast'",
    "optim.optimizer.lr=false": "optim.optimizer.lr expects a number, got false",
    "optim.optimizer.betas=0.9": "optim.optimizer.betas expects a list, written [a,b], got 0.9",
    "optim.optimizer.betas=[0.9,x]": "optim.optimizer.betas[1] expects a number, got 'x'",
    "model=lenet5 model.kernels=[5,a]": "model.kernels[1] expects an integer, got 'a'",
    "optim.optimizer=sgd": "optim.optimizer expects a mapping, written {key: value}, got 'sgd'",
    "optim.optimizer={lr:fast}": "optim.optimizer.lr expects a number, got 'fast'",
    "data.name=[a]": "data.name expects text, got ['a']",
    # The type of an interpolated default is that of the value it leads to.
    "model.classes=x": "model.classes expects an integer, got 'x' (the default is 10)",
    "-m seed=1,2,x": "seed expects an integer from 0 to 4294967295, got 'x'",
    "-m seed=range(0,2,0.5)": "seed expects an integer from 0 to 4294967295, got 0.0",
}
OUT_OF_RANGE = {
    "+trainer.fast_dev_run=x": "trainer.fast_dev_run expects true or false, or an integer from 0, got 'x'",
    "trainer.check_val_every_n_epoch=null": "set it to a number of batches",
    "trainer.limit_train_batches=1.5": "trainer.limit_train_batches expects a fraction up to 1.0, or a number of",
    "+trainer.logger=false": "trainer.logger expects nothing, for the run itself gives it; write +logger.<name>",
}
OF_ANOTHER_FORM = {
    "quant=prc quant.clip.z=3": "unknown key 'quant.clip.z': coefficient is what this option has; quant/clip= chooses",
    "quant=prc quant/clip=gaussian quant.clip.coefficient=0.5": "unknown key 'quant.clip.coefficient': z is what this",
    "quant=prc quant/clip=gausian": "unknown quant/clip 'gausian': did you mean 'gaussian'? options: gaussian, ratio",
}
MALFORMED = {
    "model=[vgg11": "cannot read 'model=[vgg11'",
    "ckpt=a=b": "cannot read 'ckpt=a=b'",
    "model=": "'model=' has no value: options: lenet5, simplecnn, vgg11",
    "ckpt=": "'ckpt=' has no value: write null for none",
    "=3": "'=3' has no key",
    "model": "'model' has no '=': settings are written model=<option>; options: lenet5",
    "vgg11": "'vgg11' has no '=': settings are written key=value",
    "--epochs 3": "unrecognized arguments: --epochs: settings are written key=value",
    "--cfg jobs": "argument --cfg/-c: invalid choice: 'jobs'",
    "--cfg job -m": "only one of --run, --multirun, --cfg",
    "--resolve": "--resolve goes with --cfg or --help only",
    "-cd nowhere": "--config-dir: there is no folder",
    "-cp nowhere": "--config-path: there is no folder",
    "model=vgg11,lenet5": "'model=vgg11,lenet5' holds several values: add -m to run each",
    "seed=range(0,3)": "'seed=range(0,3)' holds several values: add -m to run each",
    "-m seed=range(3,0)": "'seed=range(3,0)' has no values",
    "-m seed=range(0,3,0)": "cannot read 'seed=range(0,3,0)'",
    "-m optim.optimizer.lr=interval(0,1)": "interval() needs a sweeper that samples",
    "-m hydra.run.dir=a,b": "Hydra's own settings cannot be swept",
    "model=[vgg11,lenet5]": "model takes one option",
    "~model": "'~model': a run needs model; options: lenet5",
    "model=null": "'model=null': a run needs model",
    "~seed": "'~seed': a run needs seed",
    "~hw": "'~hw': hw is a list, write hw=[] for none",
    "-m data@source=mnist,null": "a sweep cannot leave out data@source",
    "+model=vgg11": "'+model=vgg11': model is chosen already, leave out the '+'",
    "++model=vgg11": "a group takes no '++', write model=<option>",
    "+seed=1": "'+seed=1': seed is there already, leave out the '+'",
    "hydra.job.num=x": "cannot compose the config: Error merging override hydra.job.num=x",
}
INCOMPLETE = {
    "data=local": "data.root must be given: write data.root=<value>",
    "-m data=digits,local": "data.root must be given: write data.root=<value>",
    "data=lost": "data.classes: Interpolation key 'nowhere.classes' not found",
    "--cfg job --resolve data=lost": "data.classes: Interpolation key 'nowhere.classes' not found",
    "save_dir=${nowhere}": "Interpolation key 'nowhere' not found",
    "logger.wandb.project=${oc.env:OCTO_NO_SUCH_VARIABLE}": "OCTO_NO_SUCH_VARIABLE",
    "data=broken": "broken.yaml",
    "-cd sweeps -cn transfer": "'transfer' is a sweep: add -m to run it",
}
ALL_WRONG = {**UNKNOWN, **WRONG_TYPE, **OUT_OF_RANGE, **OF_ANOTHER_FORM, **MALFORMED, **INCOMPLETE}

RIGHT = {
    "": "",
    "model=vgg11 quant=octo seed=3 train=false": "model=vgg11 quant=octo seed=3 train=false",
    "optim.optimizer.lr=1 data.name=5 ckpt=a/b.ckpt": "optim.optimizer.lr=1 data.name=5 ckpt=a/b.ckpt",
    "optim.scheduler=null quant.skip=[] data.root=/data": "optim.scheduler=null quant.skip=[] data.root=/data",
    "trainer.devices=auto trainer.limit_val_batches=4": "trainer.devices=auto trainer.limit_val_batches=4",
    "++train=x": "++train=x",
    "+trainer.fast_dev_run=true +trainer.min_steps=3": "+trainer.fast_dev_run=true +trainer.min_steps=3",
    "trainer.max_epochs=null trainer.max_steps=20": "trainer.max_epochs=null trainer.max_steps=20",
    "trainer.check_val_every_n_epoch=null trainer.val_check_interval=7": None,
    "logger.wandb.wait_s=2.5 trainer.limit_val_batches=null": "logger.wandb.wait_s=2.5 trainer.limit_val_batches=null",
    "optim.optimizer.lr=null": "optim.optimizer.lr=null",
    "+optim.optimizer.amsgrad=true +optim.interval=epoch": "+optim.optimizer.amsgrad=true +optim.interval=epoch",
    "+callbacks.lr={_target_:lightning.pytorch.callbacks.LearningRateMonitor}": None,
    # Nearly the name of another, and said to be one of its own.
    "+callbacks.memory2._target_=a.B callbacks.memory2.every=3": (
        "+callbacks.memory2._target_=a.B +callbacks.memory2.every=3"
    ),
    "+logger.tb._target_=a.B +logger.tb.save_dir=x": "+logger.tb._target_=a.B +logger.tb.save_dir=x",
    "optim.scheduler._target_=torch.optim.lr_scheduler.StepLR optim.scheduler.step_size=3": (
        "optim.scheduler._target_=torch.optim.lr_scheduler.StepLR +optim.scheduler.step_size=3"
    ),
    "-m quant=prc quant/clip=ratio,gaussian": None,
    "quant=prc quant/clip=gaussian quant.clip.z=2": None,
    "data=local data.root=a": "data=local data.root=a",
    "hw=[tpu_v1,systolic_32x32]": "hw=[tpu_v1,systolic_32x32]",
    "hw=tpu_v1": "hw=tpu_v1",
    "+hw=tpu_v1": "+hw=tpu_v1",
    "hw=[]": "hw=[]",
    "~callbacks": "~callbacks",
    "~callbacks.memory": "~callbacks.memory",
    "+experiment=claim": "experiment=claim",
    "experiment=null": "~experiment",
    "data@source=mnist": "data@source=mnist",
    "data@source=null": "~data@source",
    "quant.overrides.conv1=fp32": "+quant.overrides.conv1=fp32",
    "+quant.overrides.conv1.output=fp32": "+quant.overrides.conv1.output=fp32",
    "quant.overrides={conv1:fp32}": "++quant.overrides={conv1:fp32}",
    "quant=octo quant.overrides.conv1=int8": "quant=octo +quant.overrides.conv1=int8",
    "optim={optimizer:{lr:0.5}}": "optim={optimizer:{lr:0.5}}",
    "quant=octo quant.overrides.fc=int8": "quant=octo quant.overrides.fc=int8",
    "hydra.run.dir=here hydra.verbose=true": "hydra.run.dir=here hydra.verbose=true",
    "+hydra.job.env_set.A=1": "+hydra.job.env_set.A=1",
    "-m model=vgg11,lenet5 seed=range(0,3)": "-m model=vgg11,lenet5 seed=range(0,3)",
    "-m model=glob(*)": "-m model=glob(*)",
    "-m hw=[tpu_v1],[systolic_32x32] +experiment=claim": "-m hw=[tpu_v1],[systolic_32x32] experiment=claim",
    "hydra.mode=MULTIRUN seed=1,2": "hydra.mode=MULTIRUN seed=1,2",
    # Flags may stand anywhere; Hydra wants them first.
    "seed=1 --cfg job model=vgg11": "--cfg job seed=1 model=vgg11",
    # To look at a config it need not be complete.
    "--cfg job data=local": "--cfg job data=local",
    "--cfg job data=lost": "--cfg job data=lost",
    "-m -cd sweeps -cn transfer": "-m -cd sweeps -cn transfer",
    # What only a swept group brings, Hydra does not find before the sweep.
    "-m -cd sweeps -cn transfer data.root=x source.root=y": "-m -cd sweeps -cn transfer data.root=x ++source.root=y",
    "-m model=vgg11 model.dropout=0.5 seed=1,2": "-m model=vgg11 model.dropout=0.5 seed=1,2",
    "-m -cd sweeps -cn transfer quant=int8 data@source=digits": None,
    "-cn train.yaml -cp conf": "-cn train.yaml -cp conf",
    # Not for us: Hydra answers.
    "--hydra-help": "--hydra-help",
    "--info config": "--info config",
    "-sc install=bash": "-sc install=bash",
}


def check(line: str, project: Path) -> list[str]:
    return check_arguments(line.split(), config_dir=project / "conf")


SPACES: dict[str, ConfigSpace] = {}


def space_of(**where: Any) -> ConfigSpace:
    """The space of those folders and that root config, composed once: no test changes a file of it."""
    where["lines"] = [line for line in where["lines"] if "searchpath" in line]
    key = repr(sorted(where.items()))
    if key not in SPACES:
        SPACES[key] = ConfigSpace(**where)
    return SPACES[key]


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(arguments, "ConfigSpace", space_of)


@pytest.mark.parametrize("line", ALL_WRONG)
def test_a_wrong_line_is_refused_in_one_line(line: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(ALL_WRONG[line])) as refused:
        check(line, project)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_value_of_a_yaml_and_every_value_of_a_sweep_has_the_same_range(project: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {accumulate_grad_batches: 0}\n")
    with pytest.raises(ConfigError, match=r"^trainer.accumulate_grad_batches expects an integer from 1, got 0$"):
        check(f"-cd {tmp_path} experiment=mine", project)
    with pytest.raises(ConfigError, match=r"^seed expects an integer from 0 to 4294967295, got -1$"):
        check("-m seed=0,1,-1", project)


@pytest.mark.parametrize("line", RIGHT)
def test_a_right_line_reaches_hydra(line: str, project: Path) -> None:
    expected = RIGHT[line]
    assert check(line, project) == (line if expected is None else expected).split()


@pytest.mark.parametrize("key", ["hydra.run.dir", "save_dir"])
def test_an_output_folder_under_a_file_is_refused(key: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=f"train.py is no folder; choose another with {key}=<folder>"):
        check(f"{key}=train.py/deep/er", project)


def test_an_output_folder_that_is_a_file_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.py is no folder; choose another with hydra.sweep.dir=<folder>"):
        check("-m seed=1,2 hydra.sweep.dir=train.py", project)


def test_a_disk_that_cannot_be_written_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written: Read-only file system; .*hydra.run.dir=<folder>"):
        check("seed=1", project)


def test_looking_for_the_output_folder_leaves_nothing_behind(project: Path) -> None:
    before = sorted(project.rglob("*"))
    check("hydra.run.dir=new/folder", project)
    assert sorted(project.rglob("*")) == before


def test_a_required_group_must_be_chosen(project: Path, tmp_path: Path) -> None:
    (tmp_path / "open.yaml").write_text("defaults:\n  - train\n  - override model: ???\n")
    with pytest.raises(ConfigError, match=r"You must specify 'model', e\.g, model=<OPTION> Available options: lenet5"):
        check(f"-cd {tmp_path} -cn open", project)


def test_configs_of_a_search_path_count(project: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\n")
    for line in (f"hydra.searchpath=[file://{tmp_path}] model=mine", f"-cd {tmp_path} model=mine model.name=x"):
        assert check(line, project) == line.split()
    with pytest.raises(ConfigError, match="unknown model 'mine'"):
        check("model=mine", project)


def test_the_sweep_of_a_config_is_checked_less_what_the_line_replaces(project: Path, tmp_path: Path) -> None:
    sweep = "defaults: [train, _self_]\nhydra:\n  sweeper:\n    params:\n      model: lenet5,vgg1\n      seed: 1,2\n"
    (tmp_path / "study.yaml").write_text(sweep)
    with pytest.raises(ConfigError, match="unknown model 'vgg1'"):
        check(f"-m -cd {tmp_path} -cn study", project)
    line = f"-m -cd {tmp_path} -cn study model=vgg11 seed=5"
    assert check(line, project) == line.split()


def test_options_said_plainly_are_composed_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "ConfigSpace", ConfigSpace)
    composed = []
    compose = ConfigSpace.compose
    monkeypatch.setattr(ConfigSpace, "compose", lambda self, *of: composed.append(of) or compose(self, *of))
    with pytest.raises(ConfigError, match=r"^unknown key 'model.width': known there: classes, dropout, name$"):
        check("model=vgg11 quant=octo model.width=3", project)
    assert len(composed) == 1


@pytest.mark.parametrize("fields", ["$FLAGS_HELP", "$HYDRA_CONFIG_GROUPS $$ $CONFIG"])
def test_help_is_what_hydra_fills_into_its_template(fields: str, project: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        check_arguments(["--help", "seed=3", f"hydra.help.template='{fields}'"], config_dir=project / "conf")
    space = space_of(config_dir=str(project / "conf"), extra_dir=None, config_name="train", lines=[])
    cfg = space.compose(["seed=3", f"hydra.help.template='{fields}'"], RunMode.RUN)
    expected = Hydra("train", space.loader).get_help(cfg.hydra.help, job_part(cfg), get_args_parser(), resolve=False)
    assert (left.value.code, capsys.readouterr().out) == (0, f"{expected}\n")


@pytest.mark.parametrize("template", ["$WHAT", "costs 3 $", "${nowhere}"])
def test_a_template_that_cannot_be_filled_is_refused_in_one_line(template: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=r"^hydra.help.template: ") as refused:
        check_arguments(["--help", f"hydra.help.template='{template}'"], config_dir=project / "conf")
    assert "\n" not in str(refused.value)


def test_a_check_leaves_hydra_as_it_was(project: Path) -> None:
    before = HydraConfig.instance().cfg
    check("model=vgg11", project)
    assert HydraConfig.instance().cfg is before
