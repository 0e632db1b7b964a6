"""The verbs of `octo`: each is a file of this folder, and an entry here that says what words it takes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """What a verb does, and the words that it takes: `octo VERB [PATH] key=value ...`.

    path: what its one path is; in brackets where it may be left out, None where there is none. is_name: it may be a
    name, of what the verb has; others must exist. needs, may: its settings as they are written, `key=a|b` where there
    are but these values; former: keys of earlier versions. is_open: it takes settings of a run and Hydra's flags, which
    are checked against conf/. tells: it answers --help by itself.
    """

    module: str
    does: str
    path: str | None = None
    is_name: bool = False
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    is_open: bool = False
    tells: bool = False

    @property
    def known(self) -> tuple[str, ...]:
        """Return the keys of its settings."""
        return tuple(word.partition("=")[0] for word in (*self.needs, *self.may))

    @property
    def choices(self) -> dict[str, list[str]]:
        """Return the values of those settings that have but a few."""
        pairs = (word.partition("=") for word in (*self.needs, *self.may))
        return {key: values.split("|") for key, _, values in pairs if "|" in values}

    @property
    def words(self) -> str:
        """Return what stands behind the verb."""
        settings = ["[key=value ...]"] if self.is_open else [f"[{word}]" for word in self.may]
        return " ".join([*([self.path] if self.path else []), *self.needs, *settings])

    @property
    def takes_path(self) -> bool:
        """Whether there must be a path."""
        return self.path is not None and not self.path.startswith("[")


VERBS = {
    "train": Verb(
        module="octo_exp.cli.train", does="train, test and account for one network", is_open=True, tells=True
    ),
    "sweep": Verb(
        module="octo_exp.cli.sweep",
        does="train every combination of values key=a,b",
        path="[FILE.yaml]",
        is_name=True,
        is_open=True,
    ),
    "resume": Verb(module="octo_exp.cli.resume", does="go on with a run that was broken off", path="RUN", is_open=True),
    "eval": Verb(module="octo_exp.cli.evaluate", does="test a trained network again", path="RUN", is_open=True),
    "predict": Verb(
        module="octo_exp.cli.predict",
        does="class and probability of images",
        path="IMAGES",
        needs=("run=RUN",),
        may=("out=FILE.csv", "trust=[package]"),
    ),
    "export": Verb(
        module="octo_exp.cli.export",
        does="write a run's network for other programs, verified",
        path="RUN",
        needs=("format=c|mcu|onnx|report|text",),
        may=(
            "out=FILE",
            "hw=MACHINE",
            "calibration.images=256",
            "calibration.activations=mse|absmax|percentile",
            "calibration.percentile=99.99",
            "calibration.symmetric=true",
            "calibration.weights_per_channel=true",
            "trust=[package]",
        ),
        former=("output",),
    ),
    "summary": Verb(module="octo_exp.cli.summarize", does="print the table of a sweep again", path="FOLDER"),
    "dse": Verb(module="octo_exp.cli.dse", does="search machines for a training step", is_open=True, tells=True),
    "bench": Verb(
        module="octo_exp.cli.bench",
        does="measure kernels, steps, memory, graphs",
        path="NAME",
        is_name=True,
        is_open=True,
        tells=True,
    ),
    "scalesim": Verb(
        module="octo_exp.cli.scalesim",
        does="SCALE-Sim's reports of a topology on a machine",
        path="TOPOLOGY.csv",
        needs=("config=FILE.cfg", "out=FOLDER"),
        may=("rows=conv|gemm",),
    ),
    "fetch": Verb(
        module="octo_exp.cli.fetch",
        does="place the released microcontroller graphs, checked",
        path="[FOLDER]",
        may=("out=FOLDER",),
    ),
    "graph": Verb(
        module="octo_exp.cli.graph",
        does="logits of an int8 graph file for a file of images",
        path="FILE.pkl",
        needs=("images=X.npy", "out=Y.npy", "mode=float_order|integer"),
    ),
}


def usage_of(name: str) -> str:
    """Return the line that says how a verb is called."""
    return f"octo {name} {VERBS[name].words}".rstrip()
