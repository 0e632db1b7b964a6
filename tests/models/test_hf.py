"""`model=hf`: classifiers of transformers, tiny and without the network."""

import pytest
import torch

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.models.hf import HuggingFaceClassifier
from octo_exp.nn.layers import QuantLayer
from tests.configs import compose_copy
from tests.run_helpers import go

RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
VIT = {
    **{"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 32, "patch_size": 8},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def model(**changes):
    settings = {"name": None, "revision": "main", "config": None, "in_channels": 1, "num_classes": 10, "image_size": 32}
    return HuggingFaceClassifier(**{**settings, **changes})


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_network_of_the_hub_trains_in_int8(config, tmp_path, monkeypatch):
    seen = []
    forward = QuantLayer.forward
    monkeypatch.setattr(QuantLayer, "forward", lambda self, x: seen.append(type(self)) or forward(self, x))
    written = "{" + ",".join(f"{k}:{v}" for k, v in config.items()) + "}"
    settings = [f"hf.config={written}", "model.image_size=32", "data.limit_train=120", "data.epochs=1", "logger=csv"]
    # Products of two activations have no price.
    settings += ["~callbacks.cost"] if config is VIT else ["hw=[systolic_16x16]"]
    results = go(tmp_path, "model=hf", "quant=octo", *settings)
    assert seen
    assert 0 <= results["test/acc"] <= 1
    assert config is VIT or results["cost/systolic_16x16/train_step_cycles"] > 0


def test_trained_weights_are_taken_from_a_folder_and_the_head_starts_anew(tmp_path):
    source = model(config=RESNET)
    source.net.save_pretrained(tmp_path / "trained")
    found = model(name=str(tmp_path / "trained"), num_classes=3)
    name = "net.resnet.embedder.embedder.convolution.weight"
    assert torch.equal(found.state_dict()[name], source.state_dict()[name])
    assert found(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"takes 1 channels; set data\.channels"):
        model(name=str(tmp_path / "trained"), in_channels=3)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({}, ConfigError, "give one of hf.name"),
        ({"name": "a", "config": {}}, ConfigError, "give one of hf.name"),
        ({"name": "no/such-model"}, UserError, "hf.name=no/such-model cannot be had"),
        ({"config": {"model_type": "none"}}, ConfigError, "hf.config makes no image classifier"),
        ({"config": {"model_type": "bert"}}, ConfigError, "hf.config makes no image classifier"),
        ({"config": {}}, ConfigError, "hf.config makes no image classifier"),
    ],
)
def test_what_makes_no_classifier_is_one_line(settings, error, said):
    with pytest.raises(error, match=said) as caught:
        model(**settings)
    assert "\n" not in str(caught.value)


def test_the_keys_stand_at_the_root():
    cfg = compose_copy(None, "+model=hf", "hf.name=a/b", "+data.channels=3", "+data.classes=2")
    assert (cfg.model.name, cfg.model.num_classes) == ("a/b", 2)
