"""The library's door: what `import octo_exp` gives, and int8 layers in anybody's training loop."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import octo_exp
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.quant.forms import Nearest, Stochastic
from tests.facade.strangers import NETS, gradient, noisy, pictures, plain_net
from tests.nn.doors import watched_doors


def test_the_door_lists_what_it_gives_and_imports_no_torch(root: Path) -> None:
    code = (
        "import sys, octo_exp; names = dir(octo_exp); assert 'quantize' in names and 'scheme' in names; "
        "heavy = {'torch', 'hydra', 'numpy', 'lightning'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_every_name_of_the_door_is_there() -> None:
    for name in octo_exp.__all__:
        assert getattr(octo_exp, name) is not None
    assert octo_exp.lightning.Int8("octo").scheme.name == "octo"
    with pytest.raises(AttributeError, match="'quantise'"):
        octo_exp.quantise  # noqa: B018


@pytest.mark.parametrize("scheme", ["int8", "octo"])
@pytest.mark.parametrize("name", NETS)
def test_a_strangers_net_learns_in_a_plain_loop_by_int8_products(name: str, scheme: str) -> None:
    torch.manual_seed(0)
    net = octo_exp.quantize(NETS[name](), scheme)
    optimizer = torch.optim.Adam(octo_exp.parameter_groups(net, lr=0.01))
    images, labels = pictures()
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    with watched_doors() as seen:
        step()
    assert set(seen) == {torch.int8}
    for _ in range(11):
        step()
    assert losses[-1] < losses[0]
    net.eval()
    assert torch.isfinite(net(images)).all()


def test_each_step_of_a_plain_loop_draws_noise_of_its_own_and_a_rerun_the_same() -> None:
    first, again = noisy(plain_net()), noisy(plain_net())
    a, b = gradient(first), gradient(first)
    assert not torch.equal(a, b)
    assert torch.equal(a, gradient(again))
    assert torch.equal(b, gradient(again))
    assert not torch.equal(a, gradient(noisy(plain_net(), seed=1)))


def test_neither_evaluation_nor_a_pass_without_gradients_is_a_step() -> None:
    watched, undisturbed = noisy(plain_net()), noisy(plain_net())
    images, _ = pictures(8)
    gradient(watched), gradient(undisturbed)
    with torch.no_grad():
        watched(images)
        undisturbed.load_state_dict(watched.state_dict())
    watched.eval()(images)
    assert torch.equal(gradient(watched.train()), gradient(undisturbed))


def _checkpointed(net: Callable[[Tensor], Tensor], *, reentrant: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: checkpoint(net, x.clone().requires_grad_(), use_reentrant=reentrant)


def _step_of(net: nn.Module) -> int:
    return int(net.state_dict()["octo_steps"][1])


def test_a_checkpointed_net_computes_a_step_again_with_the_noise_it_had() -> None:
    net, plain = noisy(plain_net()), noisy(plain_net())
    again = _checkpointed(net, reentrant=False)
    for _ in range(3):
        assert torch.equal(gradient(net, again), gradient(plain))


@pytest.mark.parametrize("kind", ["dynamic", "hindsight"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_uses_the_range_it_had_and_stores_none(kind: str, reentrant: bool) -> None:
    net, plain = (octo_exp.quantize(Halves(), "int8", x={"range": kind}, skip=[]) for _ in range(2))
    again = _checkpointed(net.encode, reentrant=reentrant)
    for _ in range(3):
        assert torch.equal(gradient(net, lambda x: net.decode(again(x))), gradient(plain))
    ranges = [{k: v for k, v in one.state_dict().items() if "quantizer" in k} for one in (net, plain)]
    assert ranges[0]
    assert all(torch.equal(value, ranges[1][key]) for key, value in ranges[0].items())


def test_a_reentrantly_checkpointed_net_draws_in_every_step_anew_and_a_resumed_one_the_same() -> None:
    net = noisy(plain_net())
    first, second = (gradient(net, _checkpointed(net, reentrant=True)) for _ in range(2))
    assert not torch.equal(first, second)
    plain = noisy(plain_net())
    plain.load_state_dict({**plain.state_dict(), "octo_steps": torch.tensor([0, 0])})
    assert torch.equal(second, gradient(plain))
    twin = _resumed(net)
    third = gradient(net, _checkpointed(net, reentrant=True))
    assert torch.equal(third, gradient(twin, _checkpointed(twin, reentrant=True)))


class Halves(nn.Module):
    """A net whose loop calls its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain_net()

    def encode(self, x: Tensor) -> Tensor:
        return self.net[:3](x)

    def decode(self, z: Tensor) -> Tensor:
        return self.net[3](z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def test_layers_that_are_called_past_their_net_draw_in_every_step_anew() -> None:
    net, called = noisy(Halves()), noisy(Halves())
    for _ in range(2):
        assert torch.equal(gradient(net, lambda x: net.decode(net.encode(x))), gradient(called))
    twin = noisy(Halves(), seed=5)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(gradient(twin, twin.forward), gradient(net, net.forward))
    assert torch.equal(gradient(net), gradient(twin))
    assert _step_of(net) == 4


def test_an_average_of_states_has_whole_steps() -> None:
    net, soup = noisy(plain_net()), noisy(plain_net())
    gradient(net)
    soup.load_state_dict({key: (value + value) / 2 for key, value in net.state_dict().items()})
    assert torch.equal(gradient(net), gradient(soup))
    with pytest.raises(UserError, match=r"octo_steps is 3, not \[seed, step\]"):
        net.load_state_dict({**net.state_dict(), "octo_steps": torch.tensor(3)})


def _copied(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net)


def _pickled(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    found: nn.Module = torch.load(file, weights_only=False)
    return found


def _resumed(net: nn.Module) -> nn.Module:
    other = noisy(plain_net(), seed=5)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("twin_of", [_copied, _pickled, _resumed])
def test_a_twin_goes_on_as_the_net_would_and_counts_for_itself(twin_of: Callable[[nn.Module], nn.Module]) -> None:
    net = noisy(plain_net())
    gradient(net)
    twin = twin_of(net)
    later = [gradient(net), gradient(net)]
    assert torch.equal(later[0], gradient(twin))
    assert torch.equal(later[1], gradient(twin))


def test_an_average_of_the_weights_counts_for_itself() -> None:
    net, alone = noisy(plain_net()), noisy(plain_net())
    average = torch.optim.swa_utils.AveragedModel(net)
    gradient(net), gradient(alone)
    average.update_parameters(net)
    images, _ = pictures(8)
    average.train()(images)
    assert torch.equal(gradient(net), gradient(alone))


def test_a_float_nets_state_loads_and_the_steps_stay() -> None:
    state = plain_net().state_dict()
    net = noisy(plain_net())
    expected = [gradient(net), gradient(net)]
    other = noisy(plain_net())
    assert torch.equal(expected[0], gradient(other))
    other.load_state_dict(state, strict=False)
    assert torch.equal(expected[1], gradient(other))


def test_a_batch_that_is_not_finite_leaves_the_stored_ranges() -> None:
    net = octo_exp.quantize(plain_net(), "octo", skip=[])
    images, labels = pictures(8)
    F.cross_entropy(net(images), labels).backward()
    before = {name: value.clone() for name, value in net.state_dict().items() if "quantizer" in name}
    broken = images.clone()
    broken[0, 0, 0, 0] = float("nan")
    F.cross_entropy(net(broken), labels).backward()
    after = net.state_dict()
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_schemes_of_the_door_are_those_of_the_yaml_files_with_changes() -> None:
    plain, changed = octo_exp.scheme("octo"), octo_exp.scheme("octo", bits=4, g={"rounding": "stochastic"}, clip=None)
    assert (plain.x.bits, plain.g.rounding, plain.clip is None) == (8, Nearest(), False)
    assert (changed.x.bits, changed.w.bits, changed.g.rounding, changed.clip) == (4, 4, Stochastic(), None)


def test_an_app_of_hydras_keeps_its_own_state(root: Path) -> None:
    with initialize_config_dir(str((root / "conf").absolute()), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        assert octo_exp.scheme("octo", bits=4).bits == 4
        with pytest.raises(ConfigError):
            octo_exp.scheme("octo", bit=4)
        assert GlobalHydra.instance().hydra is theirs
    assert not GlobalHydra.instance().is_initialized()


def test_lac_has_a_learning_rate_of_its_own() -> None:
    net = octo_exp.quantize(plain_net(), "octo", skip=[])
    own, lac = octo_exp.parameter_groups(net, lr=0.5)
    assert own["lr"] == 0.5
    assert (lac["lr"], lac["weight_decay"]) == (0.001, 0.0)
    assert len(own["params"]) + len(lac["params"]) == len(list(net.parameters()))
