"""What may stand where: for each key of a config the kinds of objects that it takes."""

from dataclasses import dataclass

# Whose classes may be named without a word of the user's.
PACKAGES = ("octo_exp", "torch", "lightning", "torchmetrics")
_HYDRA = ("hydra", "hydra_plugins", "octo_exp")
_LOGGING = ("logging", "colorlog", "rich")
# Of Python's own library: plain values, which some callbacks take.
PLAIN = ("datetime.timedelta",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A key, `*` for any part of it, and what may stand there and, as an argument, anywhere below.

    takes, inside: a class (and those derived from it), a function, or `room.*`, any frozen dataclass of that room.
    packages: where it may come from.
    """

    key: tuple[str, ...]
    takes: tuple[str, ...]
    inside: tuple[str, ...] = ()
    packages: tuple[str, ...] = PACKAGES


_MODULE = "torch.nn.Module"
_DATA = "lightning.LightningDataModule"
_OPTIMIZER = "torch.optim.Optimizer"
_CALLBACK = "lightning.Callback"
_GRAPH = "octo_exp.graph.files.released.graph_file"
_SCHEDULERS = (
    "torch.optim.lr_scheduler.LRScheduler",
    "torch.optim.lr_scheduler.ReduceLROnPlateau",
    "octo_exp.runs.lit.warmup_cosine",
)
_PARTS_OF_TRAINER = (
    "lightning.pytorch.strategies.Strategy",
    "lightning.pytorch.accelerators.Accelerator",
    "lightning.pytorch.profilers.Profiler",
    "lightning.pytorch.plugins.Precision",
    "lightning.pytorch.plugins.LayerSync",
    "lightning.fabric.plugins.CheckpointIO",
    "lightning.fabric.plugins.ClusterEnvironment",
)

# The first that fits counts.
_PLACES = (
    Place(key=("model",), takes=(_MODULE, _GRAPH), inside=(_MODULE,)),
    Place(key=("data", "transforms", "*"), takes=(_MODULE,), inside=(_MODULE,)),
    Place(key=("source", "transforms", "*"), takes=(_MODULE,), inside=(_MODULE,)),
    Place(key=("data",), takes=(_DATA,), inside=("octo_exp.data.*",)),
    Place(key=("source",), takes=(_DATA,), inside=("octo_exp.data.*",)),
    Place(
        key=("quant",),
        takes=(
            "octo_exp.quant.scheme.Scheme",
            "octo_exp.runs.native.Native",
            "octo_exp.runs.posttraining.PostTraining",
        ),
        inside=("octo_exp.quant.*",),
    ),
    Place(key=("hw", "*"), takes=("octo_exp.hw.profile.HardwareProfile",), inside=("octo_exp.hw.*",)),
    Place(key=("energy",), takes=("octo_exp.hw.energy.EnergyTable",), inside=("octo_exp.hw.*",)),
    Place(
        key=("update",),
        takes=("octo_exp.graph.train.update.rule.UpdateRule",),
        inside=("octo_exp.graph.train.update.*",),
    ),
    Place(key=("optim", "optimizer"), takes=(_OPTIMIZER,), inside=(_OPTIMIZER,)),
    Place(key=("optim", "scheduler"), takes=_SCHEDULERS, inside=_SCHEDULERS),
    Place(key=("callbacks", "*"), takes=(_CALLBACK,), inside=(_CALLBACK, _MODULE, "octo_exp.*")),
    Place(key=("logger", "*"), takes=("lightning.pytorch.loggers.Logger",)),
    Place(key=("trainer",), takes=("lightning.Trainer",), inside=_PARTS_OF_TRAINER),
    Place(key=("hydra", "callbacks", "*"), takes=("hydra.experimental.callback.Callback",), packages=_HYDRA),
    Place(key=("hydra", "launcher"), takes=("hydra.plugins.launcher.Launcher",), packages=_HYDRA),
    Place(key=("hydra", "sweeper", "sampler"), takes=("optuna.samplers.BaseSampler",), packages=("optuna",)),
    Place(key=("hydra", "sweeper", "custom_search_space"), takes=(), packages=()),
    Place(key=("hydra", "sweeper"), takes=("hydra.plugins.sweeper.Sweeper",), packages=_HYDRA),
    *(
        Place(key=("hydra", log, section, "*"), takes=(f"logging.{kind}",), packages=_LOGGING)
        for log in ("job_logging", "hydra_logging")
        for section, kind in (("handlers", "Handler"), ("formatters", "Formatter"), ("filters", "Filter"))
    ),
)
# Where nothing is called: nodes that others are interpolated from.
_ELSEWHERE = ("octo_exp.*", _GRAPH, "octo_exp.runs.lit.warmup_cosine")


def place_of(key: tuple[str, ...]) -> Place:
    """Return what may stand at a key, as the `takes` of a place."""
    for place in _PLACES:
        length = len(place.key)
        if len(key) >= length and all(a in ("*", b) for a, b in zip(place.key, key, strict=False)):
            takes = place.takes if len(key) == length else place.inside
            return Place(key=key, takes=takes, packages=place.packages)
    return Place(key=key, takes=() if key[:1] == ("hydra",) else _ELSEWHERE)


def is_argument(key: tuple[str, ...]) -> bool:
    """Whether a key lies below a place or beside all of them: of what kind a foreign object is, is not known there."""
    return not any(
        len(key) == len(place.key) and all(a in ("*", b) for a, b in zip(place.key, key, strict=True))
        for place in _PLACES
    )
