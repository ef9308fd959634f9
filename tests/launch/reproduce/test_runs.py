"""Tiny runs with a loop that only writes files: trained once, shared, resumed, summed up, drawn."""

import json

import pytest

from launch import families
from launch.reproduce import __main__ as reproduce
from launch.reproduce import catalog, costs, outcome, runs
from launch.reproduce.experiment import Measure, Setting
from trainlib.errors import DataError, run_command
from trainlib.run.summary import save_summary

TABLE_2 = ("st_moe", "table", "2")


class Loop:
    """Stands for `train` of a family: keeps what was trained, and can stop in the middle."""

    def __init__(self):
        self.trained, self.code = [], 0

    def run(self, config, workdir):
        self.trained.append((workdir.name, config.init_from))
        workdir.mkdir(parents=True, exist_ok=True)
        value = 3.0 + config.seed + (1.0 if config.model.activation == "relu" else 0.0)
        lines = [
            {"step": 1, "kind": "train", "skipped": 0.0, "router/encoder.3/max_logit": 7.0},
            {"step": 1, "kind": "eval", "cross_entropy": value},
        ]
        (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
        if not self.code:
            save_summary(workdir, "done", {}, {"step": 1})
        return self.code


@pytest.fixture
def loop(monkeypatch):
    found = Loop()
    monkeypatch.setattr(families.Language, "train", found)
    return found


def command(folder, *more):
    argv = ["--paper=st_moe", "--scale=tiny", f"--workdir={folder}", *more]
    return run_command(lambda: reproduce.main(argv))


@pytest.mark.thorough
def test_a_table_is_trained_written_and_then_only_read(loop, tmp_path, capsys):
    assert command(tmp_path, "--table=2", "--seeds=2") == 0
    assert len(loop.trained) == 6
    out = capsys.readouterr().out
    assert "[6/6] Remove RMS Norm. Scale Param, seed 1" in out
    assert command(tmp_path, "--table=2", "--seeds=2") == 0
    assert len(loop.trained) == 6
    assert "Baseline, seed 0: is there" in capsys.readouterr().out
    page = (tmp_path / "st_moe_table_2.md").read_text()
    # Baseline: 3 and 4 nats with seeds 0 and 1, a sample standard deviation of 0.707.
    assert "| Baseline | 4/6 | -1.755 +- 0.02 | 2/2 | -3.500 +- 0.707 | 7.0 |" in page
    assert "| Remove GEGLU | 3/3 | -1.849 +- 0.02 | 2/2 | -4.500 +- 0.707 | 7.0 |" in page
    assert "--paper=st_moe --table=2 --scale=tiny --seeds=2" in page
    assert "2 seeds" in page
    data = json.loads((tmp_path / "st_moe_table_2.json").read_text())
    assert data["rows"]["Baseline"]["stable runs"] == "4/6"
    assert data["runs"]["Baseline"]["1"]["ours: negative log perplexity"] == -4.0
    assert (tmp_path / "st_moe_table_2.png").stat().st_size > 1000


def test_tables_share_the_runs_that_they_have_in_common(loop, tmp_path):
    assert command(tmp_path, "--table=2") == 0
    assert command(tmp_path, "--table=3") == 0
    names = [name for name, _ in loop.trained]
    assert len(names) == len(set(names)) == 5, "the baseline is trained once"
    assert len(list((tmp_path / "runs").iterdir())) == 5


def test_some_rows_alone_and_what_is_left_out(loop, tmp_path, capsys):
    assert command(tmp_path, "--table=2", "--rows=geglu", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert list(data["rows"]) == ["Remove GEGLU"]
    assert data["left_out"] == ["Baseline", "Remove RMS Norm. Scale Param"]
    assert "--rows=geglu" in (tmp_path / "st_moe_table_2.md").read_text()
    assert command(tmp_path, "--table=2", "--rows=gelu") == 64
    assert "no row of table 2" in " ".join(capsys.readouterr().err.split())


def test_rows_that_were_trained_before_stay_in_the_table(loop, tmp_path):
    assert command(tmp_path, "--table=2", "--rows=baseline") == 0
    assert command(tmp_path, "--table=2", "--rows=geglu") == 0
    page = (tmp_path / "st_moe_table_2.md").read_text()
    assert "| Baseline |" in page
    assert "| Remove GEGLU |" in page
    assert len(loop.trained) == 2


def _spoil(path):
    path.write_text(f"x\n{path.read_text()}")


def _cut(path):
    path.write_text(path.read_text().splitlines()[0].replace('"step": 1', '"step": 0') + "\n")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("metrics.jsonl", _cut, "no line of step 1"),
        ("metrics.jsonl", _spoil, "damaged lines (1)"),
        ("metrics.jsonl", lambda path: path.unlink(), "metrics.jsonl"),
        ("summary.json", lambda path: path.write_text("{}"), "not what the run wrote"),
        ("cost.json", lambda path: path.write_text('{"cpu_seconds": "x"}'), "else than seconds"),
    ],
)
def test_a_damaged_run_is_named_before_others_are_trained(
    name, damage, message, loop, tmp_path, capsys
):
    assert command(tmp_path, "--table=2", "--rows=geglu") == 0
    (workdir,) = (tmp_path / "runs").iterdir()
    damage(workdir / name)
    capsys.readouterr()
    assert command(tmp_path, "--table=2") == 65
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert str(workdir) in said
    assert "Remove" in said
    assert len(loop.trained) == 1


def test_a_place_that_cannot_be_written_is_named_before_the_training(loop, tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder in ("file", "file/x"):
        assert command(tmp_path / folder, "--table=2") == 74
        assert "cannot be made" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "st_moe_table_2.md").mkdir()
    assert command(tmp_path, "--table=2") == 64
    assert "is a folder" in " ".join(capsys.readouterr().err.split())
    assert not loop.trained


def test_a_run_that_starts_from_another_trains_that_first_and_once(loop, tmp_path):
    settings = catalog.find("st_moe", "figure", "5").tiny
    for setting in settings[:2]:
        runs.train(setting, 0, tmp_path)
    (first, nothing), (second, start), (third, same) = loop.trained
    assert nothing == ""
    assert start == same == str(tmp_path / first)
    assert len({first, second, third}) == 3


def test_a_run_that_stops_is_gone_on_with(loop, tmp_path):
    setting = catalog.find(*TABLE_2).tiny[0]
    loop.code = 75
    with pytest.raises(DataError, match="Give the same command again"):
        runs.train(setting, 0, tmp_path)
    assert not runs.finished(setting, 0, tmp_path)
    loop.code = 0
    workdir = runs.train(setting, 0, tmp_path)
    assert runs.finished(setting, 0, tmp_path)
    assert [name for name, _ in loop.trained] == [workdir.name] * 2
    assert runs.cost(workdir) >= 0


def test_another_value_or_seed_is_another_run(tmp_path):
    one = Setting("a", "st_moe_stability", {})
    places = {
        runs.place(one, 0, tmp_path),
        runs.place(one, 1, tmp_path),
        runs.place(Setting("a", "st_moe_stability", {"steps": "7"}), 0, tmp_path),
        runs.place(Setting("a", "st_moe_stability", {}, start=one), 0, tmp_path),
    }
    assert len(places) == 4
    plain = Setting("b", "st_moe_stability:z_loss")
    by_key = Setting("c", "st_moe_stability", {"routing.z_loss_weight": "0.001"})
    digests = {runs.place(s, 0, tmp_path).name.rpartition("_")[2] for s in (plain, by_key)}
    assert len(digests) == 1, "what a run is called is no part of what it is"


@pytest.mark.parametrize(
    ("evaluated", "skipped", "stable"),
    [([3.0, 2.0], 0, 1), ([2.0, 2.05], 0, 1), ([2.0, 2.2], 0, 0), ([3.0, 2.0], 1, 0), ([], 0, 0)],
)
def test_when_a_run_counts_as_stable(tmp_path, evaluated, skipped, stable):
    lines = [{"step": 1, "kind": "train", "skipped": skipped}]
    lines += [{"step": 1, "kind": "eval", "cross_entropy": value} for value in evaluated]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    save_summary(tmp_path, "done", {}, {"step": 1})
    assert runs.Record(Setting("a", "b"), 0, tmp_path).stable == stable


# One block a stage and an eighth of the width compile sooner.
ONE_STEP = {
    "steps": "1",
    "schedule.warmup_steps": "0",
    "eval_every": "1",
    "checkpoint.every": "1",
    "data.workers": "0",
    "model.blocks": "1,1,1,1",
    "model.width": "0.125",
    "model.gate": "bam",
}


@pytest.mark.slow
def test_a_real_run_is_read_as_it_was_written(tmp_path):
    setting = Setting("BAM", "reproduce_small", ONE_STEP)
    workdir = runs.train(setting, 0, tmp_path)
    (record,) = runs.records([setting], 2, tmp_path)
    summary = json.loads((workdir / "summary.json").read_text())
    assert record.percent("top1") == pytest.approx(100 * summary["top1"])
    assert (record.trained("loss") or 0) > 0
    assert record.params > 10_000
    assert runs.cost(workdir) > 1


@pytest.mark.parametrize(
    ("measure", "values", "text"),
    [
        (Measure("m", lambda run: 0, 1), [1.0, 2.0], "1.5 +- 0.7"),
        (Measure("m", lambda run: 0, 1), [1.0, 1.0], "1.0"),
        (Measure("m", lambda run: 0, 0), [738586.0], "738,586"),
        (Measure("m", lambda run: 0, 0, count=True), [1.0, 0.0, 1.0], "2/3"),
        (Measure("m", lambda run: 0), [None], "-"),
    ],
)
def test_figures_of_several_seeds(measure, values, text):
    assert outcome.summed_up(measure, values) == text


def test_computed_tables_need_no_run(tmp_path, capsys):
    assert command(tmp_path, "--table=19") == 0
    page = (tmp_path / "st_moe_table_19.md").read_text()
    assert "| Wikipedia | 3 | 0.05 | 3 | 0.05 |" in page
    assert command(tmp_path, "--figure=2", "--json") == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows["[2^30, 2^31)"]["computed: bfloat16"] == "8388608"
    assert not (tmp_path / "st_moe_figure_2.png").exists()


def test_the_price_is_chips_times_steps(monkeypatch, tmp_path):
    """A step of 0.36 s: 1,000 steps are 0.1 hours, of 32 chips 3.2 chip hours."""
    experiment = catalog.find("st_moe", "table", "9")
    asked = []

    def reports(args):
        def report(plan, target):
            asked.append((plan.config.routing.capacity_factor, target.name))
            fits = plan.config.routing.capacity_factor < 2
            more = {"step_time": {"seconds": 0.36}} if fits else {}
            return {"fits": fits, "target": target.name, "chips": 32, **more}

        return report

    monkeypatch.setattr(costs.plans, "cached_reports", reports)
    settings = [Setting(s.row, s.config, {**s.values, "steps": "1000"}) for s in experiment.full]
    rows = costs.price(experiment, None, tmp_path, settings[:2])
    assert asked == [(1.25, "v5p-64"), (2.0, "v5p-64")]
    assert rows[0]["chip_hours"] == pytest.approx(3.2)
    assert rows[0]["days"] == pytest.approx(0.1 / 24)
    assert (rows[1]["fits"], rows[1]["chip_hours"]) == (False, None)
    text = "\n".join(costs.lines(experiment, rows, as_json=False))
    assert "ST-MoE-L, 2.0" in text
    assert "3 chip hours in all" in text
