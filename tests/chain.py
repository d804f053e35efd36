"""The commands of the three jobs on the small planet, for end-to-end tests, and how they are run as processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
DATES = ("2003-01-10", "2003-04-10", "2003-07-09", "2003-10-07")
MEMBERS = 3
SCORE = ("model.hidden=[8,8]", "model.blocks=[1,1]", "model.patterns=20")


class Chain:
    """The commands of the chain, each the demo's configuration with smaller numbers."""

    def __init__(self, folder: Path, planet: Path) -> None:
        self.folder = folder
        years = {"train": 2001, "validation": 2002, "test": 2003}
        sources = {"temperature": "era5_t.*", "precipitation": "precip.*", "olr": "olr.2xdaily.*", "static": "static"}
        self.prepared = ["configs/data_prep/tiny.yaml", "archive.n_latitude=16", "archive.n_longitude=32"]
        self.prepared += [f"archive.{name}_years=[{year},{year}]" for name, year in years.items()]
        self.prepared += [f"archive.sources.{name}={planet}/{files}.nc" for name, files in sources.items()]
        self.prepared += [f"archive.path={folder}/archive.zarr", f"shards.path={folder}/shards"]
        self.prepared += [f"encode.path={folder}/latents", f"encode.autoencoder={folder}/autoencoder/bundle"]
        self.prepared += [f"observe.{name}.factor=4" for name in ("temperature", "precipitation", "olr")]
        self.prepared += [f"observe.path={folder}/observations.zarr", f"world.folder={folder}/world"]
        self.prepared += ["shards.frames_per_shard=100"]

    def prep(self, stage: str, *words: str) -> list[str]:
        return ["data_prep", stage, *self.prepared, *words]

    def train(self, kind: str, shards: str, steps: int, *words: str, name: str = "") -> list[str]:
        folder = self.folder / (name or kind)
        words += (f"folder={folder}", f"shards={self.folder}/{shards}", f"bundle={folder}/bundle", "data.batch=16")
        words += (f"samples={16 * steps}", "optim.warmup_samples=80", "optim.ema_half_life_samples=200")
        words += ("engine.torch_threads=1",)
        return ["train", f"configs/train/tiny_{kind}.yaml", *words, "wandb=disabled", "engine.precision=fp32"]

    def sample(self, *words: str, run: str = "run", verify: bool = False) -> list[str]:
        folder = self.folder
        paths = [f"folder={folder}/{run}", f"score={folder}/score/bundle", f"autoencoder={folder}/autoencoder/bundle"]
        paths += [f"observations={folder}/observations.zarr", f"archive={folder}/archive.zarr", f"members={MEMBERS}"]
        paths += [f"period.first_day={DATES[0]}", "period.last_day=2003-12-01", "period.every_days=90"]
        mode = ["verify"] if verify else []
        return ["sample", *mode, "configs/sample/tiny.yaml", *paths, "sampler.steps=4", "verify.bootstrap=50", *words]

    @property
    def commands(self) -> list[list[str]]:
        return [
            *map(self.prep, ("archive", "shards", "observe")),
            self.train(
                "autoencoder", "shards", 100, "model.hidden=[8]", "model.latent_channels=4", "model.reduction=2"
            ),
            self.prep("encode"),
            self.train("score", "latents", 150, *SCORE, "model.background_error=0.3"),
            self.sample(),
            self.sample("without=[olr]"),
            self.sample(verify=True),
        ]


def start(command, preexec_fn=None, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = kept | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, preexec_fn=preexec_fn, **pipes)


def finish(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out
