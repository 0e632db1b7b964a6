"""Steps of graphs of any layout: one name each, every read made before, images that fit, and the spec's own parts."""

import pytest

from octo_exp.graph.operations import INPUT, images_of, last_reads, steps_of
from octo_exp.graph.parts import BlockSpec, ConvSpec, PoolSpec
from tests.graph.helpers import tiny_model, tiny_resnet
from tests.graph.random_models import random_model

MODELS = [tiny_model, tiny_resnet, *(lambda seed=seed: random_model(seed) for seed in range(20))]


@pytest.mark.parametrize("model", MODELS)
def test_parts_are_those_of_the_spec_in_order_of_execution(model):
    spec = model()
    parts = []
    for layer in spec.layers:
        block = isinstance(layer, BlockSpec)
        parts += [*layer.convs, *([layer.residual] if layer.residual else [])] if block else [layer]
    steps = steps_of(spec)
    assert [id(step.part) for step in steps] == [id(part) for part in (*parts, spec.classifier)]
    assert len({step.name for step in steps} | {INPUT}) == len(steps) + 1
    assert steps[-1].name == "classifier"


@pytest.mark.parametrize("model", MODELS)
def test_every_step_reads_what_was_made_before(model):
    steps = steps_of(model())
    made = [INPUT]
    for step in steps:
        assert set(step.reads) <= set(made)
        made.append(step.name)
    last = last_reads(steps)
    # Nothing is made in vain, and nobody reads the logits.
    assert set(last) == set(made[:-1])
    assert all(name not in step.reads for name, k in last.items() for step in steps[k + 1 :])


@pytest.mark.parametrize("model", MODELS)
def test_images_by_name_are_what_steps_take_and_give(model):
    spec = model()
    images, steps = images_of(spec), steps_of(spec)
    assert [*images] == [INPUT, *(step.name for step in steps)]
    assert images[INPUT] == spec.image
    for step in steps:
        assert tuple(images[name] for name in step.reads) == step.takes
        assert images[step.name] == step.gives


def test_a_shortcut_is_read_before_the_body_and_is_the_input_where_it_is_empty():
    steps = {step.name: step for step in steps_of(tiny_resnet())}
    assert steps["layer2.add"].reads == ("layer1", "layer2.body1")
    assert steps["layer3.shortcut0"].reads == ("layer2.add",)
    assert steps["layer3.add"].reads == ("layer3.shortcut0", "layer3.body1")
    assert steps["layer3.add"].takes[0] == steps["layer3.shortcut0"].gives != steps["layer3.add"].takes[1]


@pytest.mark.parametrize("model", MODELS)
def test_only_convolutions_count(model):
    spec = model()
    steps = steps_of(spec)
    for step in steps:
        conv = isinstance(step.part, ConvSpec)
        assert (step.macs, step.params) == ((step.part.macs, step.part.params) if conv else (0, 0))
    assert sum(step.macs for step in steps) == spec.macs + spec.classifier.macs
    assert sum(step.params for step in steps) == spec.params + spec.classifier.params


def test_a_pool_changes_the_size_alone():
    pools = [step for step in steps_of(tiny_resnet()) if isinstance(step.part, PoolSpec)]
    assert [step.part.kind for step in pools] == ["max", "average"]
    assert all(step.gives == step.takes[0]._replace(size=step.part.out_size) for step in pools)
