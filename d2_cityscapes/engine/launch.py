"""The start of a training's processes: one, those of --num-gpus, or one of torchrun's.

"Ranks" are the processes of a training, 0 the first of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import multiprocessing

from d2_cityscapes.engine.setup import ConfigError, check_gpus, load_config
from d2_cityscapes.errors import INTERRUPTED, D2CityscapesError, run

__all__ = ["launch"]


@dataclass(frozen=True)
class _Place:
    """Where a process stands among all."""

    rank: int
    world_size: int
    local_rank: int  # on its machine
    local_world_size: int


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process that the command line or torchrun asks for.

    Under torchrun this process is one of them. Otherwise it starts --num-gpus processes, as
    Detectron2's ``launch`` does, and waits for them; of one alone there is no group. A group talks
    by NCCL where MODEL.DEVICE is a GPU, else by gloo.

    A mistake of the user that several processes find is raised in one of them; the others leave
    with exit code 1, without a word.

    Args:
        main: can be pickled.
        args: those of Detectron2's ``default_argument_parser``.

    Raises:
        ConfigError: more processes than GPUs, or options that contradict each other.
    """
    place = _torchrun_place()
    asked = args.num_machines * args.num_gpus
    if place is not None:
        if asked > 1:
            raise ConfigError("torchrun starts the processes: leave out --num-gpus, --num-machines")
        world_size = place.world_size
    else:
        check_gpus(args.num_gpus)
        world_size = asked
    if world_size == 1:
        main(args)
    elif place is not None:
        meeting = dist.rendezvous("env://", timeout=DEFAULT_TIMEOUT)
        _run_rank(main, args, place, next(iter(meeting))[0])
    else:
        _spawn(main, args)


def _torchrun_place() -> _Place | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return None
    return _Place(*(int(os.environ[name]) for name in names))


def _spawn(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run the ranks of this machine, and leave as the first of them that fails."""
    host, port = _address(args)
    if args.machine_rank == 0:
        # Here, as torchrun does it: in one of the ranks it would end with that.
        server = _store(host, port, is_master=True, wait_for_workers=False)
        port = server.port
    try:
        multiprocessing.spawn(_run_spawned, (main, args, host, port), nprocs=args.num_gpus)
    except multiprocessing.ProcessExitedException as error:
        if error.signal_name is not None:
            raise D2CityscapesError(f"{error} (killed, perhaps for want of memory)") from error
        raise SystemExit(error.exit_code) from error  # it has said why


def _address(args: argparse.Namespace) -> tuple[str, int]:
    """Host and port of --dist-url; port 0 for any that is free."""
    if args.dist_url == "auto" and args.num_machines == 1:
        return "127.0.0.1", 0
    url = urlsplit(args.dist_url)
    if url.scheme != "tcp" or not url.hostname or not url.port:
        raise ConfigError(
            f"--dist-url {args.dist_url}: give tcp://HOST:PORT of the machine of rank 0, the same "
            "on all machines"
        )
    return url.hostname, url.port


def _store(host: str, port: int, **options: Any) -> dist.TCPStore:
    try:
        return dist.TCPStore(host, port, timeout=DEFAULT_TIMEOUT, **options)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--dist-url tcp://{host}:{port}: {reason}") from error


def _run_spawned(
    local_rank: int,
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    host: str,
    port: int,
) -> None:
    place = _Place(
        rank=args.machine_rank * args.num_gpus + local_rank,
        world_size=args.num_machines * args.num_gpus,
        local_rank=local_rank,
        local_world_size=args.num_gpus,
    )
    run(lambda: _run_rank(main, args, place, _store(host, port)))


def _run_rank(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    place: _Place,
    store: dist.Store,
) -> None:
    """Join the group of all ranks, run `main`, leave the group."""
    mistakes = dist.PrefixStore("mistakes", store)
    with _one_voice(mistakes):
        backend = _choose_backend(args, place)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=DEFAULT_TIMEOUT,
        )
    with _group(backend), _one_voice(mistakes):
        _create_local_group(place)
        main(args)


@contextlib.contextmanager
def _group(backend: str) -> Iterator[None]:
    """Leave the process group at the end: all together, but for one that fails."""
    try:
        yield
    except BaseException:
        # An exit with threads of gloo at work may abort. NCCL would wait for the other ranks here.
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    comm.synchronize()
    dist.destroy_process_group()


@contextlib.contextmanager
def _one_voice(mistakes: dist.Store) -> Iterator[None]:
    """Let one rank alone report a mistake that several find, or that ends the others."""
    try:
        yield
    except KeyboardInterrupt:
        if _count(mistakes, "interrupted") > 1:
            raise SystemExit(INTERRUPTED) from None
        raise
    except D2CityscapesError as error:
        _count(mistakes, "any")
        if _count(mistakes, hashlib.sha256(str(error).encode()).hexdigest()) > 1:
            raise SystemExit(1) from None
        raise
    except Exception:
        if _count(mistakes, "any", 0):  # the connection to that rank broke
            raise SystemExit(1) from None
        raise


def _count(mistakes: dist.Store, key: str, new: int = 1) -> int:
    """How many ranks have found it; with an unreachable store, only this one."""
    try:
        return mistakes.add(key, new)
    except RuntimeError:
        return new


def _choose_backend(args: argparse.Namespace, place: _Place) -> str:
    """NCCL, with this rank's GPU chosen, where the config computes on GPUs; else gloo."""
    if not torch.cuda.is_available():
        return "gloo"
    device = load_config(args.config_file, args.opts, train=False).MODEL.DEVICE
    if not device.startswith("cuda"):
        return "gloo"
    if device != "cuda":
        raise ConfigError(f"MODEL.DEVICE {device}: with several processes use cuda, a GPU for each")
    if place.local_world_size > torch.cuda.device_count():
        raise ConfigError(
            f"{place.local_world_size} processes on a machine with {torch.cuda.device_count()} "
            "GPUs: start as many as it has (torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(place.local_rank)
    return "nccl"


def _create_local_group(place: _Place) -> None:
    """Tell Detectron2 which ranks share a machine."""
    size = place.local_world_size
    if place.world_size % size:
        raise ConfigError(
            f"{place.world_size} processes, {size} on this machine: use as many on each"
        )
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(size)
        return
    for first in range(0, place.world_size, size):  # Detectron2 0.6: as its launch does
        group = dist.new_group(list(range(first, first + size)))
        if first == place.rank - place.local_rank:
            comm._LOCAL_PROCESS_GROUP = group
