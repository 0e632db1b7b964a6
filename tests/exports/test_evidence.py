"""What an export is called: verified by evidence alone, else computed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from octo_exp.base.errors import UserError
from octo_exp.cli import export as command
from octo_exp.exports.evidence import Evidence, state_of, written
from octo_exp.exports.formats import FORMATS, module_of
from tests.exports.c_helpers import stand_in
from tests.exports.text_helpers import quantized


def form(**parts):
    return SimpleNamespace(__name__="form", SUFFIX=".x", write=lambda *given: {"arrays": 2}, **parts)


def says(**changes):
    values = {"images": 20, "equal": 20, "by": "a runtime", "facts": {"opset": 1}} | changes
    return form(verify=lambda *given: Evidence(**values))


def test_without_a_verification_files_are_computed_and_never_verified(tmp_path):
    found, evidence = written(form(), None, tmp_path, "net")
    assert (found, evidence) == ({"arrays": 2}, None)
    assert state_of(evidence) == "computed"


def test_with_evidence_files_are_verified(tmp_path):
    found, evidence = written(says(), None, tmp_path, "net")
    assert found == {"arrays": 2, "opset": 1}
    assert state_of(evidence) == "verified"
    assert evidence.shown() == {"images": 20, "equal": 20, "of": "logits", "by": "a runtime"}


@pytest.mark.parametrize(("allowed", "fails"), [(0, True), (1, True), (2, False)])
def test_more_images_than_the_evidence_allows_are_refused(allowed, fails, tmp_path):
    planted = says(equal=18, allowed=allowed, of="classes", remedy="try another")
    if not fails:
        assert written(planted, None, tmp_path, "net")[1].equal == 18
        return
    message = r"net\.x does not verify: 2 of 20 images have other classes than the graph, by a runtime; try another"
    with pytest.raises(UserError, match=f"^{message}$"):
        written(planted, None, tmp_path, "net")


@pytest.mark.parametrize("counts", [{"images": 0, "equal": 0}, {"images": 3, "equal": 4}, {"images": 3, "equal": -1}])
def test_no_images_are_no_evidence(counts):
    with pytest.raises(ValueError, match="is none"):
        Evidence(by="nobody", **counts)


def test_what_is_no_evidence_does_not_pass_for_it(tmp_path):
    with pytest.raises(TypeError, match=r"form\.verify must return Evidence, got bool"):
        written(form(verify=lambda *given: True), None, tmp_path, "net")


def test_the_report_has_nothing_to_verify_and_every_other_format_has():
    assert [name for name in FORMATS if not hasattr(module_of(name), "verify")] == ["report"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_a_graph_and_verifies_where_it_can(name, tmp_path):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    given = stand_in(quantized("lenet5"), images=12)
    source = SimpleNamespace(net=None)
    more = {"original": given.spec, "origin": "calibrated", "source": source, "batches": given.batches}
    graph = SimpleNamespace(spec=given.spec, net=given.net, profile=None, **more)
    module = module_of(name)
    _, evidence = written(module, graph, tmp_path, "net")
    assert (tmp_path / f"net{module.SUFFIX}").exists()
    assert state_of(evidence) == ("verified" if hasattr(module, "verify") else "computed")
    if evidence is not None:
        assert (evidence.images, evidence.equal) == (12, 12)


@pytest.mark.parametrize("evidence", [None, Evidence(images=20, equal=19, by="a runtime", of="classes", allowed=1)])
def test_the_table_says_verified_with_evidence_alone(evidence, capsys):
    content = {"test_images": 20, "same_class_as_run": 1.0, "graph": "ptq", "accuracy_of_run": 0.9, "accuracy": 0.9}
    content |= {"bytes": 3, "parameters": 2, "macs": 1, "state": state_of(evidence)}
    content["evidence"] = None if evidence is None else evidence.shown()
    command.show(Path("net.x"), content, {})
    shown = capsys.readouterr().out
    assert ("verified" in shown) == (evidence is not None)
    assert ("computed" in shown) == (evidence is None)
    assert ("classes of 19 of 20 images" in shown) == (evidence is not None)
