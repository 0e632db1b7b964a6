"""`quant=ptq`: post-training quantisation. A network trains in float, becomes an int8 graph, is tested in integers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.data.protocol import DataModule
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.spec import ModelSpec
from octo_exp.quant.scheme import Scheme

# In the run's folder: what was tested, for the exports.
GRAPH_FILE = "graph.pkl"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostTraining:
    """What conf/quant/ptq.yaml says; its comments say what each value means."""

    name: str
    precision: str
    training: Scheme
    calibration: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse what would fail after training, and to train in integers: a float network is what is quantised."""
        check_calibration(self.calibration)
        if not self.training.is_float:
            raise UserError(
                f"quant.training={self.training.name}: quant=ptq trains in float; to quantise a run that was trained "
                "in integers use octo export"
            )

    def forget(self, folder: Path) -> None:
        """Take away the graph of an earlier run in the folder, which would pass for one of the new weights."""
        (folder / GRAPH_FILE).unlink(missing_ok=True)

    def integer_net(self, net: nn.Module, datamodule: DataModule, folder: Path) -> IntegerNet:
        """Quantise a trained float net, write its graph into the run's folder and return it in integers alone.

        UserError for an operation without an int8 form, by name and place.
        """
        spec = quantized(net, datamodule, self.calibration)
        write_model(spec, folder / GRAPH_FILE)
        return IntegerNet(spec).eval()


def quantized(net: nn.Module, datamodule: DataModule, calibration: Mapping[str, Any]) -> ModelSpec:
    """Return a trained float net [N, C, S, S] -> [N, classes] as an int8 graph; the net is left as it is.

    Args:
        net: plain torch.
        datamodule: gives the images to calibrate on, and says how many there are.
        calibration: `images` and the settings of `quantize_network`.

    Raises:
        UserError: an operation without an int8 form; settings that are none.

    """
    check_calibration(calibration)
    images = min(calibration["images"], datamodule.train_size)
    return quantized_by(net, datamodule.calibration_batches(images), calibration)


def check_calibration(calibration: Mapping[str, Any]) -> None:
    """UserError for a setting of conf/quant/ptq.yaml that is none, also for one that another setting leaves unread."""
    from octo_exp.graph.calibrate.scales import check_method

    images, percentile = calibration.get("images"), calibration.get("percentile")
    if not isinstance(images, int) or isinstance(images, bool) or images < 1:
        raise UserError(f"calibration.images={images}: it must be a whole number of at least 1")
    for key in ("symmetric", "weights_per_channel"):
        if not isinstance(calibration.get(key), bool):
            raise UserError(f"calibration.{key}={calibration.get(key)}: it must be true or false")
    if not isinstance(percentile, int | float) or isinstance(percentile, bool):
        raise UserError(f"calibration.percentile={percentile}: it must be a number")
    check_method("percentile", percentile)
    check_method(calibration.get("activations"), percentile)


def quantized_by(net: nn.Module, batches: Iterable[Tensor], calibration: Mapping[str, Any]) -> ModelSpec:
    """The same on batches of images [B, C, S, S], normalised; `images` of the settings is not read."""
    # Most runs quantise nothing, and torch.fx takes its time.
    from octo_exp.graph.calibrate import quantize_network

    settings = {key: value for key, value in calibration.items() if key != "images"}
    return quantize_network(net, batches, **settings)
