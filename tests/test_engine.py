"""The engine computes what a plain loop of torch computes, however it is executed and whoever started it."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from crew import joined, outside
from torch import nn

from slams.autoencoder import Autoencoder, PaperAutoencoder
from slams.unet import UNet
from train import engine, execution, launch
from train.engine import Engine, EngineConfig, opened_world
from train.execution import recompute_activations
from train.machine import Machine, check_together
from train.optim import OptimConfig, build_optimizer

STEPS, BATCH, RATE, DECAY = 6, 4, 1e-2, 0.1


@pytest.fixture(scope="module", autouse=True)
def world():
    with joined() as found:
        yield found


class Task(nn.Module):
    """Large gradients, matrices and vectors of odd sizes, and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(5, 3)
        self.register_buffer("scale", torch.tensor([10.0, 20.0, 30.0]))

    def forward(self, batch):
        y = self.second(torch.tanh(self.first(batch["x"])).mean((2, 3)))
        return {"loss": ((y.float() * self.scale - batch["y"]) ** 2).mean()}


def batches(parts):
    """The micro-batches of each step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x, y = torch.randn(BATCH, 2, 4, 6, generator=generator), 50 * torch.randn(BATCH, 3, generator=generator)
        yield [{"x": a, "y": b} for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)]


def by_hand(task, precision, clipping, parts):
    """AdamW as torch has it; the norms of the gradients, and the weights."""
    groups = [[p for p in task.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    decays = ({"params": group, "weight_decay": d} for group, d in zip(groups, (DECAY, 0.0), strict=True))
    optimizer, norms = torch.optim.AdamW(decays, lr=RATE), []
    for micros in batches(parts):
        optimizer.zero_grad()
        for batch in micros:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = task(batch)["loss"]
            (loss / parts).backward()
        norms.append(nn.utils.clip_grad_norm_(task.parameters(), clipping or float("inf")).item())
        optimizer.step()
    return norms, [p.detach() for p in task.parameters()]


def start_engine(task, world, **options):
    config = EngineConfig(**{"precision": "fp32", "gradient_clipping": 0.0} | options)
    optimizer = build_optimizer(task, OptimConfig(learning_rate=RATE, weight_decay=DECAY))
    return Engine(task, optimizer, config, world, BATCH)


def one_step(engine, micros):
    for i, batch in enumerate(micros):
        engine.backward(engine.forward(batch)["loss"])
        if i < len(micros) - 1:
            engine.accumulate()
    norm = engine.gradient_norm()
    late = engine.step(RATE, norm)
    return late if norm is None else norm.item()


def weights(engine):
    with engine.whole():
        return [p.detach().clone() for p in engine.parameters]


def assert_same_weights(left, right):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("precision", "clipping", "parts"), [("fp32", 0.0, 1), ("fp32", 2.0, 2), ("bf16", 0.0, 1), ("bf16", 2.0, 2)]
)
def test_every_stage_computes_what_a_loop_of_torch_computes(world, stage, precision, clipping, parts):
    """DeepSpeed clips where nothing is said, and its bf16 takes a step of its own at stage 0."""
    task = Task()
    norms, expected = by_hand(copy.deepcopy(task), precision, clipping, parts)
    assert min(norms) > 2
    options = {"precision": precision, "gradient_clipping": clipping, "accumulation": parts}
    engine = start_engine(task, world, zero_stage=stage, **options)
    assert engine.n_parameters == sum(w.numel() for w in expected)
    found = [one_step(engine, micros) for micros in batches(parts)]
    np.testing.assert_allclose(found, norms, rtol=1e-5)
    assert_same_weights(weights(engine), expected)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_computes_the_same_and_compiles_nothing(world, stage, monkeypatch, tmp_path):
    """Here both memories are the processor's: the numbers and the lack of a compiler are what can be seen."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    task = Task()
    _, expected = by_hand(copy.deepcopy(task), "fp32", 0.0, 1)
    engine = start_engine(task, world, zero_stage=stage, offload=True)
    for micros in batches(1):
        one_step(engine, micros)
    assert_same_weights(weights(engine), expected)
    assert not list(tmp_path.iterdir())


def networks():
    torch.manual_seed(0)
    x, t, day = torch.randn(2, 3, 2, 8, 16), torch.rand(2), torch.randn(2, 3, 5)
    static = torch.randn(2, 8, 16)
    yield UNet(6, [8, 8], [2, 1], "sphere", True, static, True), (x, t, day)
    yield UNet(6, [8, 8], [1, 2]), (x, t, day)
    code = Autoencoder(2, 3, 8, 2, 2, static[:, ::2, ::2])
    nn.init.normal_(code.encode_branch[-1].weight)
    nn.init.normal_(code.decode_branch[-1].weight)
    yield nn.ModuleDict({"code": code}), (x[:, 0],)


def gradients(network, inputs):
    """The gradients, and the bytes kept for them."""
    kept = {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    call = (lambda x: network["code"].decode(network["code"].encode(x))) if len(inputs) == 1 else network
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = call(*inputs)
    out.square().sum().backward()
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    return found, sum(kept.values())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_recomputed_activations_give_the_same_gradient_from_less_memory(which):
    network, inputs = list(networks())[which]
    names = list(network.state_dict())
    expected, much = gradients(network, inputs)
    recompute_activations(network)
    found, little = gradients(network, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert little < 0.8 * much and list(network.state_dict()) == names


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_activations_train_the_same_weights(world, stage):
    class Denoising(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, (x, t, day) = next(networks())
            self.batch = {"x": x.repeat(2, 1, 1, 1, 1), "t": t.repeat(2), "day": day.repeat(2, 1, 1)}

        def forward(self, batch):
            return {"loss": (self.network(batch["x"], batch["t"], batch["day"]) - 1).square().mean()}

    found = []
    for recompute in (False, True):
        task = Denoising()
        engine = start_engine(task, world, zero_stage=stage, activation_checkpointing=recompute)
        for _ in range(3):
            one_step(engine, [task.batch])
        found.append(weights(engine))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_activations_of_a_network_without_residual_blocks_cannot_be_recomputed():
    with pytest.raises(ValueError, match=r"^engine.activation_checkpointing: true is not allowed; this network has no"):
        recompute_activations(PaperAutoencoder(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_a_compiled_task_computes_the_same(world, stage):
    task = Task()
    _, expected = by_hand(copy.deepcopy(task), "fp32", 0.0, 1)
    engine = start_engine(task, world, zero_stage=stage, compile=True)
    for micros in batches(1):
        one_step(engine, micros)
    assert_same_weights(weights(engine), expected)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"offload": True, "zero_stage": 1}, "engine.offload: true needs a GPU"),
        ({"compile": True}, "engine.compile: true needs a C.. compiler, but /no/compiler is not found"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(monkeypatch, options, sentence):
    monkeypatch.setenv("CXX", "/no/compiler")
    with pytest.raises(ValueError, match=sentence):
        execution.check_machine(EngineConfig(**options), torch.device("cpu"))
    execution.check_machine(EngineConfig(**options), torch.device("cuda"))


def test_the_machine_is_asked_before_the_world_is_joined(monkeypatch):
    monkeypatch.setattr("train.engine.deepspeed.init_distributed", lambda *a, **k: pytest.fail("joined"))
    with pytest.raises(ValueError, match="needs a GPU"), opened_world(EngineConfig(offload=True, zero_stage=1)):
        pass


ON_CPU = Machine("node1", "cpu", "", True)
ON_GPU = Machine("node1", "cuda", "GPU-1", True)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (ON_GPU._replace(gpu="GPU-2"), None),
        (ON_GPU._replace(host="node2"), None),  # as simulated nodes of one machine may say
        (ON_GPU, "processes 0 and 1 on node1 compute on the same GPU, GPU-1; one process a GPU"),
        (ON_CPU._replace(host="node2"), "process 0 on node1 computes on cuda, process 1 on node2 on cpu; all on one"),
    ],
)
def test_processes_that_could_only_wait_for_each_other_are_refused(other, sentence):
    check_together([ON_CPU, ON_CPU._replace(host="node2"), ON_CPU])
    with pytest.raises(ValueError, match=sentence) if sentence else nullcontext():
        check_together([ON_GPU, other])


def test_every_process_hears_what_all_compute_on_and_auto_is_bf16_where_all_can():
    told = [ON_CPU, ON_CPU._replace(bf16=False), ON_CPU._replace(host="node2")]
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(3) as processes:
        heard = list(
            processes.map(lambda i: engine._introduced(store.clone(), launch.Place(i, 3, i), told[i]), range(3))
        )
    assert heard == [told] * 3
    assert execution.resolve_precision(EngineConfig(), True) == "bf16"
    assert execution.resolve_precision(EngineConfig(), False) == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions_of_a_gpu_keep_the_mantissa_of_the_precision(world, precision):
    start_engine(Task(), world, precision=precision)
    assert torch.backends.cudnn.allow_tf32 == (precision == "bf16")


def test_offloading_without_zero_is_refused():
    with pytest.raises(ValueError, match="offload: true is not allowed with zero_stage 0"):
        EngineConfig(offload=True)


def set_environment(monkeypatch, variables):
    for name in set(os.environ) - set(outside()):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def ranked(rank="1", size="4", local="1", port="29500"):
    return dict(zip(launch.LAUNCH_VARIABLES, (rank, size, local, "node1", port), strict=True))


def tasked(rank="1", size="4", local="1", port="29500"):
    return dict(zip(launch.SLURM_VARIABLES, (rank, size, local, "node1", port), strict=True))


SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 1, 0)),
        (ranked(), (1, 4, 1)),
        (ranked("0", "1", "0"), (0, 1, 0)),
        (tasked(), (1, 4, 1)),
        (tasked() | {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, (1, 4, 1)),
        (tasked("0", "1", "0") | {"SLURM_JOB_ID": "7"}, (0, 1, 0)),
        (ranked() | tasked("0", "2", "0"), (1, 4, 1)),  # torchrun on each node, started by srun
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, (0, 1, 0)),  # a shell of salloc
        (SCRIPT | {"SLURM_NTASKS": "4"}, (0, 1, 0)),  # a batch script that does not use srun
        (SCRIPT | {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, (0, 1, 0)),  # srun --pty bash
        (SCRIPT, (0, 1, 0)),
        ({"SLURM_JOB_ID": "7", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}, (0, 1, 0)),
    ],
)
def test_the_environment_alone_tells_who_a_process_is(monkeypatch, variables, place):
    set_environment(monkeypatch, variables)
    assert launch.launch() == place


def without(variables, *names):
    return {name: value for name, value in variables.items() if name not in names}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (without(ranked(), "RANK"), "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT set, but not RANK; set all"),
        (without(ranked(), "MASTER_ADDR", "MASTER_PORT"), "set, but not MASTER_ADDR, MASTER_PORT"),
        (without(ranked(), *launch.LAUNCH_VARIABLES[:3]), "MASTER_ADDR, MASTER_PORT set, but not RANK, WORLD_SIZE"),
        (without(tasked(), "MASTER_ADDR", "MASTER_PORT"), "SLURM_LOCALID set, but not MASTER_ADDR, MASTER_PORT"),
        (without(tasked(), "SLURM_LOCALID"), "set, but not SLURM_LOCALID"),
        (ranked(rank="4"), "RANK=4, WORLD_SIZE=4, .* is not allowed; 0 <= local rank <= rank < number of processes"),
        (tasked(rank="4"), "SLURM_PROCID=4, SLURM_NTASKS=4, .* is not allowed"),
        (ranked(local="2"), "LOCAL_RANK=2, .* is not allowed"),
        (ranked(size="0"), "WORLD_SIZE=0, .* is not allowed"),
        (ranked(port="70000"), "MASTER_PORT=70000 is not allowed"),
        (ranked(rank="one"), "RANK='one' is not allowed; a whole number, at least 0"),
        (ranked(rank="-1"), "RANK='-1' is not allowed; a whole number"),
        (ranked(size=""), "WORLD_SIZE='' is not allowed; a whole number"),
        (tasked(size="2.0"), "SLURM_NTASKS='2.0' is not allowed; a whole number"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused_in_one_sentence(monkeypatch, variables, sentence):
    set_environment(monkeypatch, variables)
    with pytest.raises(ValueError, match=f"^environment: .*{sentence}"):
        launch.launch()
