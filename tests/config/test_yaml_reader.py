"""Yaml read with libyaml says what it says with PyYAML's own reader, mistakes included."""

import io
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf, _utils

from octo_exp.config.yaml_reader import on_libyaml, use_libyaml

CONF = Path(__file__).resolve().parents[2] / "conf"
PLAIN = getattr(_utils.get_yaml_loader, "plain", _utils.get_yaml_loader)()
TEXTS = [
    "a: 1e3\nb: 1_000\nc: 2001-01-01\nd: yes\ne: 0x1F\nf: ${x.y}\ng: .5\nh: 1:30.5",
    "[a: 1, {b: [c, 'd: e']}, \"\\u00e9\", ~, '']",
    "text: |\n  two\n  lines\nfold: >-\n  a\n  b\n",
    "x: &one {a: 1}\ny: *one\nz: {<<: *one, b: 2}",
    "{a:1, b : 2}",
    "",
]
WRONG = ["a: 1\na: 2", "a: [1", "a: b: c", "\tx: 1", "a: *none", "'open", "a: !!python/name:os.system", "--- a\n--- b"]

needs_libyaml = pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")


@needs_libyaml
def test_every_value_is_the_same() -> None:
    texts = [*TEXTS, *(path.read_text(encoding="utf-8") for path in sorted(CONF.rglob("*.yaml")))]
    fast = on_libyaml(PLAIN)
    for text in texts:
        found, wanted = yaml.load(text, Loader=fast), yaml.load(text, Loader=PLAIN)
        assert repr(found) == repr(wanted), text


@needs_libyaml
@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_in_the_same_words(text: str) -> None:
    said = []
    for loader in (PLAIN, on_libyaml(PLAIN)):
        with pytest.raises(yaml.YAMLError) as error:
            yaml.load(io.StringIO(text), Loader=loader)
        said.append(str(error.value))
    assert said[0] == said[1]


@needs_libyaml
def test_omegaconf_reads_with_it_once_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_utils, "get_yaml_loader", lambda: PLAIN)
    use_libyaml()
    use_libyaml()
    assert issubclass(_utils.get_yaml_loader(), yaml.cyaml.CParser)
    assert OmegaConf.create("a: 1e3") == {"a": 1000.0}


def test_without_libyaml_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    monkeypatch.setattr(_utils, "get_yaml_loader", lambda: PLAIN)
    use_libyaml()
    assert _utils.get_yaml_loader() is PLAIN
