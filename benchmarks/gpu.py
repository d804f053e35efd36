"""What one GPU does: the chain at 1.5 degrees with the real-sized networks, and what a training step costs, and why.

    python benchmarks/gpu.py FOLDER [PART ...]      # parts: chain, variants, sizes; all of them by default

Made-up weather on the real grid, five years of it, goes through the real jobs, each started as a program. The networks
learn for seconds, so that the analyses say nothing; what is measured is time, memory and the share of the fastest
matrix product of the same machine. Every row is written to FOLDER/rows.jsonl as soon as it is known.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
YEARS = {"train": (2001, 2003), "validation": (2004, 2004), "test": (2005, 2005)}
SMALL_PRIOR = ("model.patterns=20", "model.modes=8")  # where the step is measured, not the fit
QUIET = ("wandb=disabled", "validation_windows=16", "validation_frames=16")


def run(folder, name, *words):
    """Seconds of a program, whose output goes to a file; None where it failed, which is told."""
    began = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        status = subprocess.call([sys.executable, *map(str, words)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - began
    if status:
        print(f"{name}: failed after {seconds:.0f} s: {(folder / f'{name}.log').read_text()[-600:]}", flush=True)
    return None if status else seconds


def tell(folder, name, **found):
    """A row, on the screen and in the file."""
    told = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    with (folder / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps({"name": name, **told}) + "\n")
    print(name, *(f"{key} {value}" for key, value in told.items()), sep="  ", flush=True)


def timed(folder, name, *words):
    seconds = run(folder, name, "-m", *words)
    if seconds is not None:
        tell(folder, name, seconds=seconds)


def train(folder, name, preset, shards, *words, steps, batch):
    """A training of so many steps; the medians of its lines but the first two."""
    words = [*words, f"folder={folder}/{name}", f"bundle={folder}/{name}/bundle", f"shards={folder}/{shards}", *QUIET]
    words += [f"data.batch={batch}", f"samples={steps * batch}", f"log_every={max(1, steps // 10) * batch}"]
    words += [f"optim.warmup_samples={steps * batch // 10}", "validate_every=100000000", "checkpoint_every=100000000"]
    seconds = run(folder, f"train-{name}", "-m", "train", f"configs/train/{preset}.yaml", *words)
    if seconds is None:
        return
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if "samples_per_s" in line][2:]
    kept = ("samples_per_s", "data_wait", "memory_gib", "flops_per_s", "utilisation", "loss")
    kept = [key for key in lines[-1] if key in kept or key.startswith("seconds/")]
    tell(folder, name, batch=batch, seconds=seconds, **{k: statistics.median(line[k] for line in lines) for k in kept})


def prepared(folder):
    """Words of the preparation of the planet."""
    words = [f"archive.{name}_years=[{first},{last}]" for name, (first, last) in YEARS.items()]
    files = {"temperature": "era5_t.*", "precipitation": "precip.*", "olr": "olr.2xdaily.*", "static": "static"}
    words += [f"archive.sources.{name}={folder}/raw/{file}.nc" for name, file in files.items()]
    words += [f"archive.path={folder}/archive.zarr", f"shards.path={folder}/shards", f"encode.path={folder}/latents"]
    words += [f"encode.autoencoder={folder}/autoencoder/bundle", f"observe.path={folder}/observations.zarr"]
    return ["configs/data_prep/base.yaml", *words, "workers.processes=8"]


def planet(folder):
    made = (
        f"import sys; sys.path.insert(0, 'tests'); from world import write_world; write_world({str(folder / 'raw')!r}, "
    )
    run(folder, "planet", "-c", made + f"range({YEARS['train'][0]}, {YEARS['test'][1] + 1}), None, 121, 240)")
    for stage in ("archive", "shards", "observe"):
        timed(folder, stage, "data_prep", stage, *prepared(folder))


def chain(folder):
    """From shards to analyses, the presets as they are but for their length."""
    train(folder, "autoencoder", "base_autoencoder", "shards", steps=400, batch=64)
    timed(folder, "encode", "data_prep", "encode", *prepared(folder), "workers.processes=1")
    train(folder, "score", "base_score", "latents", "data.workers=12", steps=200, batch=128)
    for members in (8, 32):
        words = [f"folder={folder}/analysis-{members}", f"score={folder}/score/bundle", f"members={members}"]
        words += [f"autoencoder={folder}/autoencoder/bundle", f"observations={folder}/observations.zarr"]
        words += [f"archive={folder}/archive.zarr", "period.first_day=2005-01-05", "period.last_day=2005-01-14"]
        timed(folder, f"sample-{members}", "sample", "configs/sample/base.yaml", *words)


def variants(folder):
    """One change at a time to the flagship's step."""
    changes = {"as it is": (), "compiled": ("engine.compile=true",), "float32": ("engine.precision=fp32",)}
    changes |= {"activations recomputed": ("engine.activation_checkpointing=true",)}
    changes |= {"channels first": ("engine.channels_last=false",), "4 readers": ("data.workers=4",)}
    for name, words in changes.items():
        train(folder, name, "base_score", "latents", *SMALL_PRIOR, "data.workers=12", *words, steps=60, batch=128)


def sizes(folder):
    """The other networks; the large one's on states of 120 x 240 cells, the size of its latents."""
    train(folder, "paper_pixel", "paper_pixel", "shards", "data.workers=12", steps=60, batch=64)
    train(folder, "large_score", "large_score", "shards", *SMALL_PRIOR, "data.workers=12", steps=20, batch=16)


def main():
    if len(sys.argv) < 2:
        sys.exit("benchmarks/gpu.py: FOLDER is missing, where some 3 GB of data and runs go")
    folder, parts = Path(sys.argv[1]).absolute(), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "shards").exists():
        planet(folder)
    for part in (chain, variants, sizes):
        if not parts or part.__name__ in parts:
            part(folder)


if __name__ == "__main__":
    main()
