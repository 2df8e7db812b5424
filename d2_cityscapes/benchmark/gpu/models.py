"""Every family of models, built to make the same step on two devices."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_cityscapes.benchmark.gpu.scenes import COMPARED
from d2_cityscapes.benchmark.gpu.settings import GpuCheck, Size
from d2_cityscapes.benchmark.proposals import Proposals, ProposalTap
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.step.optimizer import build_optimizer
from d2_cityscapes.engine.step.training_step import build_training_step
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.execution.wait_free.where import as_on_gpu
from d2_cityscapes.shipped import CONFIGS

__all__ = ["FAMILIES", "Case", "State", "Step", "same_draws", "start_state"]

# family -> config
FAMILIES = {
    "DeepLabv3 (stage 0)": "stage0.yaml",
    "semantic FPN": "demo_full/stage0.yaml",
    "Mask R-CNN, GIoU (stage 1)": "stage1.yaml",
    "Mask R-CNN, k-means anchors (stage 3)": "stage3.yaml",
    "panoptic, MiniDL (stage 4)": "stage4.yaml",
    "Panoptic FPN": "panoptic/panoptic_fpn_R_50.yaml",
    "Seamless": "panoptic/seamless_R_50_FPN_1gpu.yaml",
}
_SAME = (
    "MODEL.WEIGHTS", "", "MODEL.FROM_SCRATCH", "True", "SEED", "1", "SOLVER.AMP.ENABLED", "False",
    "SOLVER.ACCUMULATE_STEPS", "1", "SOLVER.WARMUP_ITERS", "0", "DATALOADER.NUM_WORKERS", "0",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "INPUT.FIXED_SIZE", "[]", "INPUT.RANDOM_FLIP",
    "none", "SOLVER.CHANNELS_LAST", "False", "SOLVER.FUSED", "False", "DATASETS.TEST", "()",
    "TEST.EXPECTED_RESULTS", "[]", "TEST.VAL_LOSS_PERIOD", "0",
)  # fmt: skip
_LEARNED_NORMS = (
    "MODEL.RESNETS.NORM", "BN", "MODEL.FREEZE.MODULES", "[]", "MODEL.FREEZE.SCHEDULE", "[]",
)  # fmt: skip
_TRIES = 20  # steps until float16 has found its scale

State = Mapping[str, Tensor]  # of a model, on the CPU
# losses, "norm of the gradients of PART" and "norm of the update", by name
Step = dict[str, float]


class Case:
    """A family's model with its optimizer, on a device."""

    def __init__(
        self,
        check: GpuCheck,
        config: str,
        *opts: str,
        device: str,
        state: State | None,
        size: Size | None = None,
        batch: int = 2,
        dataset: str = COMPARED,
    ) -> None:
        """
        Args:
            check: of its configs and sizes.
            config: a value of `FAMILIES`.
            opts: KEY VALUE pairs, in force over all others.
            device: of the model.
            state: weights and statistics; None for random ones.
            size: of the images; None for that of the check.
            batch: images of a step.
            dataset: of the images.
        """
        height, width = size or check.compared_size
        own = [
            "DATASETS.TRAIN", f"('{dataset}',)", "SOLVER.IMS_PER_BATCH", str(batch),
            "INPUT.MIN_SIZE_TRAIN", f"({height},)", "INPUT.MAX_SIZE_TRAIN", str(width),
            "INPUT.MIN_SIZE_TEST", str(height), "INPUT.MAX_SIZE_TEST", str(width),
            "MODEL.DEVICE", device,
        ]  # fmt: skip
        all_opts = [*_SAME, *_small(check, config), *own, *opts]
        self.cfg = load_config(CONFIGS / config, all_opts, train=False)
        torch.manual_seed(0)
        self.model = build_model(self.cfg)
        if state is not None:
            self.model.load_state_dict(state)
        self.model.train()
        self.proposals: list[Proposals] = []
        self._tap = ProposalTap(self.cfg, self.model)

    def step(self, batch: list[dict], proposals: Sequence[Proposals] = ()) -> Step:
        """One optimizer step as the trainer makes it.

        Args:
            batch: the images of each of its batches.
            proposals: in place of those of the RPN: `proposals` of another case, after its step.
        """
        losses: list[dict[str, Tensor]] = []
        found: Step = {}
        optimizer = build_optimizer(self.cfg, self.model)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in weights]
        hooks = (
            self.model.register_forward_pre_hook(lambda *_: _seed()),
            self.model.register_forward_hook(lambda _, __, output: losses.append(output)),
            # before the step: Nesterov's foreach form changes gradients in place
            optimizer.register_step_pre_hook(lambda *_: found.update(self._gradient_norms())),
        )
        step = build_training_step(self.cfg, self.model, itertools.repeat(batch), optimizer)
        step.iter = 0
        with EventStorage(), self._tap.give(proposals), self._tap.keep() as self.proposals:
            for _ in range(_TRIES):
                if not found:  # float16 leaves out steps whose gradients overflow
                    losses.clear()
                    step.run_step()
        for hook in hooks:
            hook.remove()
        update = [(p - old).float().norm() for p, old in zip(weights, before, strict=True)]
        found["norm of the update"] = torch.stack(update).norm().item()
        for name in losses[0]:
            found[name] = sum(one[name].item() for one in losses) / len(losses)
        return found

    def training_step(self, batch: list[dict]) -> Callable[[], None]:
        """A function that trains one step on the same batch, as the trainer makes it."""
        optimizer = build_optimizer(self.cfg, self.model)
        step = build_training_step(self.cfg, self.model, itertools.repeat(batch), optimizer)
        step.iter = 0
        storage = EventStorage()

        def run() -> None:
            with storage:
                step.run_step()

        return run

    def _gradient_norms(self) -> Step:
        parts: dict[str, list[Tensor]] = {}
        for name, p in self.model.named_parameters():
            if p.grad is not None:
                part = ".".join(name.split(".")[:2])
                parts.setdefault(part, []).append(p.grad.float().norm())
        return {
            f"norm of the gradients of {part}": torch.stack(norms).norm().item()
            for part, norms in parts.items()
        }


def start_state(check: GpuCheck, config: str, batch: list[dict]) -> State:
    """Random weights, and frozen norms with the statistics that these weights need.

    With those of nothing, a random network with frozen norms has maps without bounds.
    """
    case = Case(check, config, device="cpu", state=None)
    state = {name: x.detach().clone() for name, x in case.model.state_dict().items()}
    if case.cfg.MODEL.RESNETS.NORM != "FrozenBN":
        return state
    learned = Case(check, config, *_LEARNED_NORMS, device="cpu", state=None).model
    body: Any = learned.backbone
    for layer in body.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    pixel = case.cfg.MODEL
    mean, std = (torch.tensor(x)[:, None, None] for x in (pixel.PIXEL_MEAN, pixel.PIXEL_STD))
    body.train()
    with torch.no_grad():
        body(torch.stack([(image["image"] - mean) / std for image in batch]))
    found = learned.state_dict()
    return {name: found[name].detach().clone() if name in found else x for name, x in state.items()}


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Anchors and RoIs are drawn by the CPU's generator, so that all devices draw the same."""
    drawn = torch.randperm

    def randperm(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        return drawn(*args, **kwargs).to(device or "cpu")

    torch.randperm = randperm
    try:
        with as_on_gpu():
            yield
    finally:
        torch.randperm = drawn


def _seed() -> None:
    torch.manual_seed(7)


def _small(check: GpuCheck, config: str) -> Sequence[str]:
    """torchvision has no smaller DeepLabv3, and the demo is small as it is."""
    fixed = ("stage0" in config) or not check.tiny
    return () if fixed else check.network
