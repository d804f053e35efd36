"""How small, how fast, how wrong: ways of storing the archive's fields, on a sample of each modality.

    python benchmarks/codecs.py [ARCHIVE]      # exact or not; default: the demo's

Each way is a Zarr array of its own in memory, with the archive's chunks; processor time of one thread. Prints a table.
"""

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import zarr
from numcodecs import BitRound, Quantize
from zarr.codecs import BloscCodec
from zarr.codecs.numcodecs import PCodec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from slams.contracts.archive import array, open_archive

DAYS, REPEATS = 256, 3
BLOSC = {
    "blosc zstd 3, shuffle": BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
    "blosc zstd 3, bit shuffle": BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
    "blosc lz4 5, bit shuffle": BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
}
ROUNDING = {
    "every bit": lambda x: x,
    "2 decimals": Quantize(2, "f4").encode,
    "3 decimals": Quantize(3, "f4").encode,
    "12 bits": lambda x: BitRound(12).encode(x).view("f4"),
}


def ways():
    """Name -> (rounding, options of the array)."""
    for rounding, function in ROUNDING.items():
        for codec, blosc in BLOSC.items():
            yield f"{rounding}; {codec}", function, {"compressors": [blosc]}
        yield f"{rounding}; pcodec 8", function, {"serializer": PCodec(level=8), "compressors": []}


def measure(x, chunks, function, options):
    """Compression ratio, MB/s written and read, largest error."""
    best = [np.inf, np.inf]
    for _ in range(REPEATS):
        store = zarr.storage.MemoryStore()
        field = zarr.create_array(store, shape=x.shape, chunks=chunks, dtype="f4", fill_value=np.nan, **options)
        began = time.process_time()
        field[:] = np.asarray(function(x)).reshape(x.shape)
        wrote = time.process_time()
        found = field[:]
        best = [min(best[0], wrote - began), min(best[1], time.process_time() - wrote)]
    size = sum(len(value) for value in store._store_dict.values())
    return x.nbytes / size, *(x.nbytes / seconds / 1e6 for seconds in best), float(np.nanmax(np.abs(found - x)))


def main():
    archive = open_archive(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/archive.zarr")
    group = zarr.open_group(str(archive.path), mode="r")
    rng = np.random.default_rng(0)
    print("| modality | kept; codec | ratio | written MB/s | read MB/s | largest error |\n|---|---|--:|--:|--:|--:|")
    for modality in archive.spec.modalities:
        field = array(group, modality.name)
        x = np.asarray(field[:DAYS])
        # an archive that was rounded has its cleared bits filled again by chance, as a model or an analysis has them
        x = x + (rng.random(x.shape) - 0.5).astype("f4") * field.attrs.get("loss_bound", 0.0)
        for name, function, options in ways():
            ratio, written, read, error = measure(x, field.chunks, function, options)
            print(f"| {modality.name} | {name} | {ratio:.2f} | {written:.0f} | {read:.0f} | {error:.2g} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # that codecs beyond the core of Zarr 3 are not in its specification yet
    main()
