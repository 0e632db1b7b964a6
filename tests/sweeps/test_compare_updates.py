"""The search for each rule's rate, on made-up accuracies; one real job."""

import json
from collections import Counter

import pytest

from sweeps import compare_updates
from sweeps.compare_updates import Job, main, ranked, study, tried_rates

PEAK = {"head_only:sgd_nomom": 0.4, "full:sgd_scale_nomom": 0.00625}


class Fake:
    """Validation accuracy falls with the distance from the rule's own best rate; test accuracy names the seed."""

    def __init__(self) -> None:
        self.asked: Counter[Job] = Counter()

    def __call__(self, jobs):
        self.asked.update(jobs)
        return [self.result(job) for job in jobs]

    @staticmethod
    def result(job):
        if job.rate > 0.5:
            return {}
        ratio = max(job.rate / PEAK[job.rule], PEAK[job.rule] / job.rate)
        return {"val/acc": 1 / ratio, "test/acc": job.rate + job.seed, "cost/a/train_step_cycles": 7}


@pytest.mark.parametrize("rule", PEAK)
def test_the_grid_grows_until_the_best_rate_lies_inside(rule):
    tried = tried_rates(Fake(), data="d", rule=rule, rates=[0.025, 0.05, 0.1], seed=0)
    rate = ranked(tried)[0]
    assert rate == pytest.approx(PEAK[rule])
    assert min(tried) < rate < max(tried)
    assert list(tried) == sorted(tried)


def test_every_rule_gets_its_own_rate_and_every_seed_that_rate():
    fake = Fake()
    rows = study(fake, sets=["d", "e"], rules=list(PEAK), rates=[0.05], seeds=[3, 4])
    assert [(row["data"], row["rule"]) for row in rows] == [(d, r) for d in "de" for r in PEAK]
    for row in rows:
        assert row["test/acc"] == [row["rate"] + 3, row["rate"] + 4]
        assert row["rate"] == pytest.approx(PEAK[row["rule"]])
    seeds_of = {rate: {job.seed for job in fake.asked if job.rate == rate} for rate in {job.rate for job in fake.asked}}
    assert sum(seeds == {3, 4} for seeds in seeds_of.values()) >= 2
    assert {3} in seeds_of.values()


def test_a_grid_ends_where_nothing_gets_better():
    tried = tried_rates(lambda jobs: [{"val/acc": job.rate} for job in jobs], data="d", rule="x:y", rates=[1.0], seed=0)
    assert len(tried) == 12


def test_a_rate_at_which_another_seed_diverges_does_not_win():
    def edge(jobs):
        good = [job.seed == 0 or job.rate < 0.1 for job in jobs]
        return [
            {"val/acc": job.rate, "test/acc": job.rate} if ok and job.rate < 0.2 else {}
            for job, ok in zip(jobs, good, strict=True)
        ]

    (row,) = study(edge, sets=["d"], rules=["x:y"], rates=[0.05, 0.1], seeds=[0, 1])
    assert row["val/acc by rate, first seed"] == {0.05: 0.05, 0.1: 0.1, 0.2: 0.0}
    assert row["rate"] == 0.05


def test_one_job_is_a_run_of_train(tmp_path, monkeypatch, capsys):
    calls = []

    def fake_train(command, **options):
        calls.append((command, options))
        folder = next(w for w in command if w.startswith("hydra.run.dir=")).partition("=")[2]
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "results.json").write_text(json.dumps({"val/acc": 0.5, "test/acc": 0.25}))
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(compare_updates.subprocess, "run", fake_train)
    arguments = ["data=digits", "data.limit_train=9", "--rules", "full:sgd", "--rates", "0.1", "--seeds", "1"]
    assert main([*arguments, "--folder", str(tmp_path)]) == 0
    command = calls[0][0]
    assert {"experiment=transfer", "data=digits", "update=full", "update.optimizer=sgd", "seed=0"} <= set(command)
    assert "data.limit_train=9" in command
    report = json.loads((tmp_path / "compare_updates.json").read_text())
    assert report["rows"][0]["test/acc"] == [0.25]
    assert "0.250" in capsys.readouterr().out


def test_a_divergence_counts_as_nothing_and_another_failure_stops(tmp_path, monkeypatch, capsys):
    def failing(message):
        done = type("Done", (), {"returncode": 1, "stderr": f"warning\n{message}"})
        monkeypatch.setattr(compare_updates.subprocess, "run", lambda *a, **k: done)
        arguments = ["data=digits", "--rules", "full:sgd", "--rates", "0.1", "--seeds", "1", "--folder", str(tmp_path)]
        return main(arguments)

    tmp_path.mkdir(exist_ok=True)
    assert failing("error: the loss is nan at epoch 0") == 0
    assert failing("error: no such file") == 1
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rates", "abc"], "--rates abc: write numbers above 0"),
        (["--rates", "0.1,0"], "--rates 0.1,0: write numbers above 0"),
        (["--rates", "nan"], "--rates nan: write numbers above 0"),
        (["--rules", "nonsense"], "--rules: 'nonsense' has no update of bias_only, full"),
        (["--rules", "full:sgd,full"], "--rules: 'full' has no optimizer of sgd, sgd_nomom"),
        (["--rules", "full:adagrad"], "--rules: 'full:adagrad' has no optimizer of sgd, sgd_nomom"),
        (["--jobs", "0"], "--jobs 0: write 1 or more"),
        (["--seeds", "0"], "--seeds 0: write 1 or more"),
    ],
)
def test_a_wrong_option_is_one_line_and_starts_no_job(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_updates.subprocess, "run", lambda *a, **k: pytest.fail("a job was started"))
    assert main([*arguments, "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words}")
    assert error.count("\n") == 1
