"""The three jobs end to end, as processes, on a small planet: what they leave, and that doing it again changes nothing.

A planet of three years, networks of eight channels and a few seconds of training: enough to be better than the
climatology, and every file of the chain is a real one.
"""

import hashlib
import json
import math
import re
import time

import numpy as np
import torch
import xarray as xr
from chain import DATES, MEMBERS, finish, start

from data_prep.__main__ import main as prepare
from sample.__main__ import main as assimilate
from train.__main__ import run as learn

MAIN = {"data_prep": prepare, "train": learn, "sample": assimilate}
SYSTEMS = {"analysis", "climatology", "interpolation", "anomaly_interpolation", "autoencoder"}


def state(folder, clock=True):
    """Every file with its content, and the time at which it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {p: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns if clock else 0) for p in files}


def members(product):
    """The files of the drawn members: a shard for each unit and modality."""
    chunks = [p for name in ("temperature", "precipitation", "olr") for p in product.glob(f"{name}/c/**/*")]
    return {str(path.relative_to(product)): path.read_bytes() for path in chunks if path.is_file()}


def test_the_scores_hold_every_system_score_and_level(chain):
    scores = json.loads((chain.folder / "run" / "verify" / "scores.json").read_text())
    assert set(scores["systems"]) == SYSTEMS | {"analysis-without-olr"}
    levels = {"10", "50", "100", "200", "300", "500", "700", "850", "925", "1000", "mean"}
    for system, found in scores["systems"].items():
        assert {"rmse", "crps", "spread_skill"} <= set(found), system
        for score, values in found.items():
            told = levels - {"10"} if score == "unstable" else levels  # layers, by the level at their bottom
            assert set(values) == told and all(math.isfinite(v) for v in values.values()), (system, score)
    assert scores["dates"] == list(DATES) and scores["members"] == MEMBERS


def test_the_analysis_is_closer_to_the_truth_than_the_climatology(chain):
    systems = json.loads((chain.folder / "run" / "verify" / "scores.json").read_text())["systems"]
    rmse = {name: found["rmse"]["mean"] for name, found in systems.items()}
    assert rmse["autoencoder"] < rmse["analysis"] < 0.95 * rmse["climatology"]
    assert systems["analysis"]["crps"]["mean"] < 0.8 * systems["climatology"]["crps"]["mean"]


def test_a_modality_withheld_is_a_product_of_its_own_with_its_cost(chain):
    scores = json.loads((chain.folder / "run" / "verify" / "scores.json").read_text())
    assert set(scores["withholding"]) == {"olr"} and math.isfinite(scores["withholding"]["olr"]["rmse"]["value"])
    full, without = (members(chain.folder / "run" / f"analysis{end}.zarr") for end in ("", "-without-olr"))
    assert full.keys() == without.keys() and full != without


def test_the_page_reads_alone(chain):
    page = (chain.folder / "run" / "verify" / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 2
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)|@import|url\((?!data:)""", page)


def test_a_scientist_opens_the_analysis(chain):
    with xr.open_zarr(chain.folder / "run" / "analysis.zarr", consolidated=True) as found:
        assert dict(found.sizes) == {"member": MEMBERS, "time": 4, "level": 10, "latitude": 16, "longitude": 32}
        assert found.temperature.attrs["units"] == "K"
        assert found.temperature.min() > 150 and found.temperature.max() < 350
        assert found.olr.min() > 0 and found.olr.max() < 500 and found.precipitation.min() >= 0
        assert list(found.time.values.astype("datetime64[D]").astype(str)) == list(DATES)
        assert found.temperature_spread.min() > 0
        np.testing.assert_allclose(found.temperature.mean("member"), found.temperature_mean, rtol=1e-5)
        rain = np.isfinite(found.precipitation)
        assert 0.2 < rain.mean() < 0.8 and (rain == rain[0, 0]).all()  # gauges stand on land


def test_the_same_commands_again_change_nothing_and_take_a_moment(chain, capsys):
    *work, verify = chain.commands
    before = state(chain.folder)
    began = time.monotonic()
    for job, *arguments in work:
        assert MAIN[job](arguments) == 0
    assert time.monotonic() - began < 30
    assert state(chain.folder) == before
    assert MAIN["sample"](verify[1:]) == 0  # scores are computed anew, and are the same
    assert state(chain.folder, clock=False) == {path: (found[0], 0) for path, found in before.items()}
    assert capsys.readouterr().err == ""


def test_two_processes_draw_what_one_draws(chain):
    command = chain.sample(run="shared")
    both = [start(command, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in both:
        finish(process)
    one, two = (chain.folder / run / "analysis.zarr" for run in ("run", "shared"))
    assert len(members(one)) == 3 * len(DATES)
    assert members(one) == members(two)
    assert (two / "complete.json").is_file() and len(list((two / "ledger").iterdir())) == len(DATES)


def test_two_processes_encode_the_same_latents(chain):
    """Also where the test's process computes on two threads and the workers on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    latents = []
    for processes in (1, 2):
        folder = chain.folder / f"latents-{processes}"
        words = [f"encode.path={folder}", "encode.batch=16", f"workers.processes={processes}"]
        assert MAIN["data_prep"](chain.prep("encode", *words)[1:]) == 0
        latents.append([path.read_bytes() for path in sorted(folder.glob("*.tar"))])
    torch.set_num_threads(before)
    assert latents[0] == latents[1]


def test_a_run_cut_off_goes_on_where_it_ended(chain):
    """Half the work, as one of two processes leaves it when the other dies; then the same command by itself."""
    command = chain.sample(run="cut")
    finish(start(command, RANK="1", WORLD_SIZE="2"))
    product = chain.folder / "cut" / "analysis.zarr"
    half = [path for path in state(product) if "temperature/c/" in str(path)]
    kept = {path: state(product)[path] for path in half}
    assert len(half) == len(DATES) / 2 and not (product / "complete.json").exists()
    finish(start(command))  # a process of its own: other tests may have changed this one's number of threads
    assert members(product) == members(chain.folder / "run" / "analysis.zarr")
    assert {path: state(product)[path] for path in half} == kept  # what was drawn is not drawn again


def test_a_dry_run_says_what_and_writes_nothing(chain, capsys, caplog):
    caplog.set_level("INFO")
    before = state(chain.folder)
    for job, *arguments in [chain.prep("world"), *chain.commands]:
        words = [word.replace(str(chain.folder / "run"), str(chain.folder / "new")) for word in arguments]
        words = [re.sub(r"^(archive|shards|encode|observe)\.path=(.*)$", r"\1.path=\2-new", word) for word in words]
        assert MAIN[job]([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out + caplog.text
    parts = ["sample world in", "to be written", "parameters: ", "4 segments of 5 days"]
    parts += ["units 4 of 3 members, finished 0", "network evaluations: ", "GiB while drawing", "from a trial"]
    for part in parts:
        assert part in said
    assert state(chain.folder) == before
