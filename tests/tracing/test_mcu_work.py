"""What a graph's step does beside its GEMMs, counted by hand, the optimizer's work, and the callback."""

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from octo_exp.hw import training_step_cost
from octo_exp.runs.callbacks.cost import CostCallback
from octo_exp.tracing import optimizer_cost
from tests.hw.helpers import machine
from tests.tracing.helpers import roles
from tests.tracing.mcu_helpers import priced, rule, tiny

BATCH = 3
# The graph's depthwise convolution 1: 8 channels, 3x3, 8x8 images.
WEIGHTS, SUMS, BITS = 8 * 9, BATCH * 8 * 64, BATCH * 8 * 64 // 8
# The block with the addition: 6 channels, 8x8 images.
ADDED, ADDED_BITS = BATCH * 6 * 64, BATCH * 6 * 64 // 8


def work_of(workload, layer):
    """(role, kind) -> operations, bytes read, bytes written."""
    return {
        (w.role, w.kind): (w.operations, w.bytes_read, w.bytes_written) for w in workload.vector if w.layer == layer
    }


def name_of(net, index):
    return list(roles(priced(net)))[index]


def test_a_trained_convolution():
    net = tiny()
    assert work_of(priced(net), name_of(net, 1)) == {
        ("output", "quantize"): (2 * WEIGHTS, 4 * WEIGHTS, WEIGHTS),
        ("output", "rescale"): (5 * SUMS, 0, BITS),
        # Bit and scale of each gradient.
        ("grad_input", "elementwise"): (2 * SUMS, 4 * SUMS + BITS, 4 * SUMS),
        ("grad_input", "quantize"): (WEIGHTS, 4 * WEIGHTS, 4 * WEIGHTS),
        ("grad_input", "col2im"): (9 * SUMS, 4 * 9 * SUMS, 4 * SUMS),
        # The bias's sums, and the codes of the input as floats.
        ("grad_weight", "elementwise"): (SUMS + SUMS, SUMS, 4 * SUMS),
        ("grad_weight", "optimizer"): (WEIGHTS + 8, 8 * (WEIGHTS + 8), 4 * (WEIGHTS + 8)),
    }


def test_a_convolution_that_trains_nothing_and_passes_nothing():
    net = tiny(n_bias=0)
    assert work_of(priced(net), name_of(net, 1)) == {
        ("output", "quantize"): (2 * WEIGHTS, 4 * WEIGHTS, WEIGHTS),
        ("output", "rescale"): (5 * SUMS, 0, 0),
    }


def test_the_first_trained_convolution_owes_no_grad_input():
    # Nine convolutions: the last eight train their biases, and of convolution 1 half of the channels.
    net = tiny(n_bias=8, weight_idx=[1], ratio=0.5)
    assert work_of(priced(net), name_of(net, 1)) == {
        ("output", "quantize"): (2 * WEIGHTS, 4 * WEIGHTS, WEIGHTS),
        ("output", "rescale"): (5 * SUMS, 0, BITS),
        # Kept channels are copied.
        ("output", "elementwise"): (SUMS // 2, SUMS // 2, SUMS // 2),
        ("grad_weight", "elementwise"): (
            2 * SUMS + SUMS + SUMS // 2,
            4 * SUMS + BITS + SUMS // 2,
            4 * SUMS + 4 * SUMS // 2,
        ),
        ("grad_weight", "optimizer"): (WEIGHTS // 2 + 8, 8 * (WEIGHTS // 2 + 8), 4 * (WEIGHTS // 2 + 8)),
    }


def test_float_order_moves_floats():
    net = tiny(mode="float_order")
    found = work_of(priced(net), name_of(net, 1))
    assert found["output", "quantize"] == (2 * WEIGHTS, 4 * WEIGHTS, 4 * WEIGHTS)
    # What is kept of the input is a copy in int8.
    assert found["output", "elementwise"] == (SUMS, 4 * SUMS, SUMS)


def additions(workload, net):
    (name,) = [name for name, module in net.named_modules() if type(module).__name__ == "McuResidual"]
    return work_of(workload, name)


def test_an_addition():
    net = tiny()
    assert additions(priced(net), net) == {
        ("output", "elementwise"): (9 * ADDED, 2 * ADDED, ADDED + ADDED_BITS),
        # A bit for each gradient, a scale for each branch.
        ("grad_input", "elementwise"): (3 * ADDED, 4 * ADDED + ADDED_BITS, 2 * 4 * ADDED),
    }
    # What the block reads twice adds two gradients up, beside its own mask and scale.
    found = work_of(priced(net), name_of(net, 2))["grad_input", "elementwise"]
    assert found == (2 * ADDED + ADDED, 4 * ADDED + ADDED_BITS + 8 * ADDED, 4 * ADDED + 4 * ADDED)


def test_an_addition_with_one_trained_branch_and_with_none():
    net = tiny(n_bias=4)
    assert additions(priced(net), net)["grad_input", "elementwise"] == (2 * ADDED, 4 * ADDED + ADDED_BITS, 4 * ADDED)
    assert ("grad_input", "elementwise") not in work_of(priced(net), name_of(net, 2))
    net = tiny(n_bias=3)
    assert additions(priced(net), net) == {("output", "elementwise"): (9 * ADDED, 2 * ADDED, ADDED)}


def test_input_pool_and_float_head():
    workload = priced(tiny())
    pixels, last, features = BATCH * 3 * 256, BATCH * 10 * 16, BATCH * 10
    assert work_of(workload, "input") == {("output", "quantize"): (4 * pixels, 4 * pixels, pixels)}
    pools = [w for w in workload.vector if w.kind == "pool"]
    assert [(w.role, w.operations, w.bytes_read, w.bytes_written) for w in pools] == [
        ("output", last, last, features),
        ("grad_input", last, 4 * features, 4 * last),
    ]
    assert work_of(workload, "head") == {
        ("output", "elementwise"): (2 * features, features, 4 * features),
        ("grad_input", "elementwise"): (features, 4 * features, 4 * features),
    }
    assert work_of(workload, "head.linear")["grad_weight", "optimizer"][0] == 10 * 5 + 5


def test_gradients_that_pass_as_codes():
    net, coded = tiny(), tiny(quantize_gradient=True)
    name = name_of(net, 1)
    before, after = work_of(priced(net), name), work_of(priced(coded), name)
    assert after["grad_input", "quantize"][0] - before["grad_input", "quantize"][0] == 5 * SUMS
    assert after["grad_weight", "quantize"] == (5 * WEIGHTS, 4 * WEIGHTS, 4 * WEIGHTS)
    # The first convolution owes none of its input, a float head is not rounded.
    assert ("grad_input", "quantize") not in work_of(priced(coded), name_of(net, 0))
    assert work_of(priced(coded), "head.linear") == work_of(priced(net), "head.linear")
    half = tiny(quantize_gradient=True, weight_idx=[1], ratio=0.5)
    assert work_of(priced(half), name)["grad_weight", "quantize"][0] == 5 * WEIGHTS // 2


# Operations of SGD and of what is beside it, bytes of momentum.
OPTIMIZERS = {
    ("sgd_nomom", "released"): (1, 0, 0),
    ("sgd", "released"): (3, 0, 4),
    ("sgd_scale_nomom", "released"): (1, 1, 0),
    ("sgd_scale", "strict_int8"): (3, 3, 4),
    ("sgd_nomom", "strict_int8"): (1, 2, 0),
    ("adam", "strict_int8"): (7, 2, 8),
}


@pytest.mark.parametrize(("optimizer", "mode"), OPTIMIZERS)
def test_update_rules(optimizer, mode):
    each, more, state = OPTIMIZERS[optimizer, mode]
    net, chosen = tiny(weight_idx=[1], ratio=0.5), rule(optimizer=optimizer, mode=mode, weight_idx=[1], ratio=0.5)
    built = chosen.build_optimizer(net, chosen.parameter_groups(net))
    workload = priced(net, optimizer=optimizer_cost(built))
    trained, head = WEIGHTS // 2 + 8, 10 * 5 + 5
    scaled = trained * more
    assert work_of(workload, name_of(net, 1))["grad_weight", "optimizer"] == (
        trained * each + scaled,
        trained * (8 + state) + 4 * scaled,
        trained * (4 + state) + 4 * scaled,
    )
    # A float head takes plain SGD.
    assert work_of(workload, "head.linear")["grad_weight", "optimizer"][0] == head * each
    held = {b.layer: b.bytes for b in workload.buffers if b.kind == "optimizer"}
    assert held.get(name_of(net, 1), 0) == trained * state


class Data(lightning.LightningDataModule):
    input_shape, batch_size = (3, 16, 16), BATCH

    def train_dataloader(self):
        images = torch.randint(-127, 128, (2 * BATCH, 3, 16, 16)).float()
        return DataLoader(TensorDataset(images, torch.arange(2 * BATCH) % 5), batch_size=BATCH)


class Lit(lightning.LightningModule):
    def __init__(self, net, chosen):
        super().__init__()
        self.net, self.chosen = net, chosen

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.chosen.build_optimizer(self.net, self.chosen.parameter_groups(self.net))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
def test_the_callback_prices_a_graph_in_training(tmp_path):
    changes = {"n_bias": 4, "n_weight": 2, "ratio": 0.5}
    net, chosen = tiny(**changes), rule(optimizer="sgd_scale", **changes)
    profile = machine(vector_lanes=4, fp32_macs_per_pe_cycle=0.25)
    callback = CostCallback(profiles={"small": profile}, convention="exact", grad_input_form="col2im", energy=None)
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    lit = Lit(net, chosen)
    trainer.fit(lit, datamodule=Data())
    cost = optimizer_cost(lit.configure_optimizers())
    expected = training_step_cost(priced(net, optimizer=cost), profile, convention="exact", energy=None)
    assert callback.reports == {"small": expected}
    assert callback.results["cost/small/total_cycles"] == expected.total_cycles > 0
    assert callback.results["cost/optimizer"] == "UpdateSGD"
    assert callback.results["cost/kept_for_backward_mib"] > 0
    assert (tmp_path / "cost.csv").is_file()
