"""The benchmark compares an update on all that it trains: a gradient that is missing or zero is another one."""

import pytest

from octo_exp.base.errors import UserError
from octo_exp.bench import graphs
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.train.update.convolutions import LayerShape
from tests.graph.helpers import tiny_model

UPDATES = {
    "whole": [],
    "shares": ["update.sparse.n_bias=3", "update.sparse.ratio=0.5"],
    "depthwise": ["update.sparse.weight_idx=[7]", "update.sparse.ratio=0.5"],
}


@pytest.fixture
def subjects(tmp_path, request):
    write_model(tiny_model(), tmp_path / "tiny.pkl")
    model = [f"model.path={tmp_path / 'tiny.pkl'}", "model.image_size=16"]
    build = [[*model, *overrides] for overrides in ([], UPDATES[request.param])]
    return [graphs.build("graph", "full", overrides, mode="integer", batch_size=2) for overrides in build]


def spoiled(subject: graphs.Subject, conv, how: str) -> None:
    """Every backward pass leaves that gradient zero, without its last kept channel, or not there at all."""

    def change(weight):
        if how == "one":
            axis, kept = (0 if LayerShape.of(conv).depthwise else 1), conv.update.kept
            weight.grad.select(axis, -1 if kept is None else int(kept[-1])).zero_()
        elif how == "zero":
            weight.grad.zero_()
        else:
            weight.grad = None

    conv.weight.register_post_accumulate_grad_hook(change)


@pytest.mark.parametrize("how", ["zero", "one", "none"])
@pytest.mark.parametrize("subjects", UPDATES, indirect=True)
def test_a_gradient_that_is_not_there_is_refused(subjects, how):
    full, subject = subjects
    graphs.check_same(full, subject, "it")
    convs = [conv for conv in subject.net.convs if conv.update.train_weight]
    assert convs
    spoiled(subject, convs[0], how)
    with pytest.raises(UserError, match=r"^it has another gradient of .*weight than"):
        graphs.check_same(full, subject, "it")
