"""Two processes over gloo: DDP and FSDP2 give the gradient of the whole batch."""

import socket
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from unrolled import EVERY_ORDER, Block, arguments, layer

import fpcheck as fp
from fpcheck.errors import InputError

WORLD = 2
ADJOINTS = {"implicit": EVERY_ORDER[0], "window": fp.TruncatedWindow(k=3), "unrolled": fp.Unrolled()}


def model(adjoint):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), layer(Block(3), adjoint), nn.Linear(3, 2)).double()


def batch():
    return arguments(2 * WORLD, 3, seed=3).x


def whole(adjoint):
    """The gradient of the whole batch in one process."""
    net = model(adjoint)
    net(batch()).square().mean().backward()
    return [p.grad for p in net.parameters()]


def equal(found, adjoint):
    for got, want in zip(found, whole(adjoint), strict=True):
        # States and adjoints are solved to 1e-12 in float64; the issue is which samples were summed, not rounding.
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def ddp(rank):
    for adjoint in ADJOINTS.values():
        for unused in (False, True):
            net = DistributedDataParallel(model(adjoint), find_unused_parameters=unused)
            for _ in range(2):  # the buckets are rebuilt after the first
                net.zero_grad()
                net(batch()[rank::WORLD]).square().mean().backward()
                equal([p.grad for p in net.parameters()], adjoint)


def fsdp(rank):
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    for adjoint in ADJOINTS.values():
        for parts in ((), (2,)):  # the model as a whole; its fixed-point layer as a unit of its own, too
            net = model(adjoint)
            for part in parts:
                fully_shard(net[part], mesh=mesh)
            fully_shard(net, mesh=mesh)
            for _ in range(2):
                net.zero_grad()
                net(batch()[rank::WORLD]).square().mean().backward()
                equal([p.grad.full_tensor() for p in net.parameters()], adjoint)
    # Sharded alone, the block gathers weights that are no arguments of it.
    net = model(None)
    fully_shard(net[2].block, mesh=mesh)
    with pytest.raises(InputError, match="call fully_shard on the FixedPoint layer"):
        net(batch()[rank::WORLD])


def worker(rank, port, what, errors):
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
        {"ddp": ddp, "fsdp": fsdp}[what](rank)
        dist.destroy_process_group()
    except BaseException:
        errors.put(traceback.format_exc())
        raise


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ddp", "fsdp"])
def test_two_processes(what):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    errors = mp.get_context("spawn").SimpleQueue()
    try:
        mp.spawn(worker, (port, what, errors), nprocs=WORLD)
    except Exception as error:
        pytest.fail(errors.get() if not errors.empty() else str(error))


def test_the_comparison_can_fail():
    """A process's own gradient is not that of the whole batch."""
    net = model(ADJOINTS["implicit"])
    net(batch()[::WORLD]).square().mean().backward()
    with pytest.raises(AssertionError):
        equal([p.grad for p in net.parameters()], ADJOINTS["implicit"])
