"""Every yaml composes and instantiates; every model x data set x scheme trains a step (acceptance check 13)."""

import inspect
import itertools
import math

import lightning
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from octo_exp.nn.convert import compensation_penalty, convert, parameter_groups
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.rounding import Clock
from tests.configs import CONF, composed, node_of, options, pairwise
from tests.graph.calibrate.helpers import MODELS as NARROW
from tests.nn.helpers import CONVERTING, SCHEMES


def shapes() -> list[str]:
    """One data set of each shape of images: others differ in nothing that a step on random images sees.

    The smallest images first: what is left to pair, models with schemes, takes them.
    """
    found = {tuple(node_of("data", name).shape): name for name in reversed(options("data")) if name != "folder"}
    return [found[shape] for shape in sorted(found, key=lambda shape: math.prod(n or 224 for n in shape))]


# Float networks of the package, with narrower layers for the large ones. Those of others: tests/models; int8 graphs are
# read from files and belong to quant=native: tests/test_native.py.
GROUPS = {"data": shapes(), "model": list(NARROW), "quant": SCHEMES}


def step(cfg: DictConfig) -> None:
    """One training step on two random images of the data set's shape, then an evaluation."""
    data = instantiate(cfg.data)
    net = instantiate(cfg.model, _convert_="all").to(memory_format=torch.channels_last)
    converted = convert(
        net, instantiate(cfg.quant, _convert_="all"), impl="torch", clock=Clock(), input_shape=data.input_shape
    )
    assert bool(converted.quantized) == (cfg.quant.name in CONVERTING)
    optimizer = instantiate(cfg.optim.optimizer)(parameter_groups(net))
    before = [p.detach().clone() for p in net.parameters()]
    x, labels = torch.randn(2, *data.input_shape), torch.tensor([0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in cfg.quant.precision):
        loss = F.cross_entropy(net(x), labels)
    penalty = compensation_penalty(net)
    (loss if penalty is None else loss + penalty).backward()
    optimizer.step()
    assert torch.isfinite(loss)
    # Two images leave some bias without a gradient (a dead unit, one that a norm cancels), but no weight.
    weights = [(a, b) for a, b in zip(before, net.parameters(), strict=True) if a.dim() > 1]
    assert not [b.shape for a, b in weights if torch.equal(a, b)]
    with torch.no_grad():
        assert net.eval()(x).shape == (2, data.classes)


@pytest.mark.parametrize("combination", pairwise(**GROUPS), ids=lambda c: "-".join(c.values()))
def test_every_pair_of_options_trains_a_step(combination):
    *_, widths = NARROW[combination["model"]]
    step(composed(*(f"{group}={option}" for group, option in combination.items()), *(f"model.{w}" for w in widths)))


@pytest.mark.slow
@pytest.mark.parametrize("combination", list(itertools.product(*GROUPS.values())), ids="-".join)
def test_the_full_product_trains_a_step(combination):
    step(composed(*(f"{group}={option}" for group, option in zip(GROUPS, combination, strict=True))))


def test_pairwise_covers_every_pair():
    chosen = {tuple(c.values()) for c in pairwise(a="12", b="345", c="67")}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        wanted = set(itertools.product(*[("12", "345", "67")[k] for k in (i, j)]))
        assert {(c[i], c[j]) for c in chosen} == wanted


def test_a_composed_config_is_its_callers_own():
    composed("seed=5").seed = 6
    assert composed("seed=5").seed == 5


FORMS = [
    *(f"quant=lac quant/compensation={form}" for form in options("quant/compensation")),
    "quant=lac quant.compensation.granularity=element",
    "quant=lac quant.compensation.granularity=element quant/compensation=affine",
    "quant=lac quant.compensation.theta_init=-1",
    *(f"quant=prc quant/clip={form}" for form in options("quant/clip")),
    *(f"quant=octo quant.w.granularity={g}" for g in ("tensor", "channel")),
    *(f"quant=octo quant.{o}.rounding=stochastic" for o in ("x", "w", "g")),
    *(f"quant=octo quant.{o}.range=hindsight" for o in ("x", "g")),
    *(f"quant=octo quant.bits={b}" for b in (2, 4, 6)),
    *(f"quant=int8 quant.{r}={p}" for r in ("output", "grad_input", "grad_weight") for p in ("fp32", "bf16", "fake")),
    "quant=octo quant.skip=[]",
    "quant=octo quant.skip=[features.*]",
    "quant=octo quant.overrides={classifier.*:{bits:4}}",
]


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_form_trains_a_step(settings, norm):
    cfg = composed("model=simplecnn", *settings.split())
    cfg.model.norm = norm
    step(cfg)


@pytest.mark.parametrize(
    ("group", "option"),
    [(path.parent.relative_to(CONF).as_posix(), path.stem) for path in sorted(CONF.glob("*/**/*.yaml"))],
)
def test_every_yaml_composes_and_says_what_it_is(group, option):
    settings = {"hw": f"hw=[{option}]"}.get(group, f"{group}={option}")
    assert composed(settings)
    text = (CONF / group / f"{option}.yaml").read_text()
    assert "#" in text, f"conf/{group}/{option}.yaml has no comment"


def targets(node: object, path: str = ""):
    """(path, node) of every node of a config that names a class."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_interpolation(node, key):
                yield from targets(node[key], f"{path}.{key}")


# No research values, and unknown to people's own yaml files of before: nothing where they are not given.
ADDED_LATER = {"transforms", "origin"}


OURS = [
    (group, option)
    for group in ("data", "model", "quant", "hw", "callbacks", "optim", "logger", "trainer")
    for option in options(group)
    if option != "own"
]


@pytest.mark.parametrize(("group", "option"), OURS)
def test_research_values_have_no_default_in_python(group, option):
    """Our own constructors are keyword-only, without defaults, and the yaml names every argument."""
    settings = [f"hw=[{option}]" if group == "hw" else f"{group}={option}"]
    # Only its user knows.
    cfg = composed(*settings, *(["data.classes=2"] if option == "folder" else []))
    for path, node in targets(cfg[group]):
        if not node._target_.startswith("octo_exp.") or node._target_.endswith("warmup_cosine"):
            continue
        parameters = inspect.signature(get_object(node._target_)).parameters.values()
        given = {key for key in node if not str(key).startswith("_")}
        assert {p.name for p in parameters} == given, f"conf/{group}/{option}.yaml: {path}"
        assert all(p.kind == p.KEYWORD_ONLY for p in parameters), f"{path} takes positional arguments"
        if group != "hw":
            given_later = [p.name for p in parameters if p.default is not p.empty]
            assert set(given_later) <= ADDED_LATER, f"{path} has a default in Python"


def test_trainer_keys_are_lightnings():
    known = set(inspect.signature(lightning.Trainer).parameters)
    for option in options("trainer"):
        assert set(composed(f"trainer={option}").trainer) - {"_target_", "_convert_"} <= known


def test_the_scheme_of_a_layer_is_what_the_yaml_says():
    cfg = composed("quant=octo", "quant.bits=6")
    net = instantiate(cfg.model, _convert_="all")
    convert(net, instantiate(cfg.quant, _convert_="all"), impl="torch", clock=Clock())
    layer = next(m for m in net.modules() if isinstance(m, QuantLayer))
    assert (layer.scheme.x.bits, layer.scheme.w.bits, layer.scheme.g.bits) == (6, 6, 6)
    assert layer.scheme.clip.coefficient == cfg.quant.clip.coefficient
