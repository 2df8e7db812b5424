"""Before the first trial: what reaches nothing is named."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.search.errors import SearchError
from d2_cityscapes.search.preflight.preflight import check_reach, run_preflight
from d2_cityscapes.search.preflight.reach import differences, fingerprint
from d2_cityscapes.search.space.plan_file import read_plan
from d2_cityscapes.search.trials.process import Outcome

pytestmark = pytest.mark.usefixtures("datasets")


class InThisProcess:
    def __init__(self, folder, environment):
        self.folder = folder

    def wait(self, report) -> Outcome:
        try:
            value, acts = run_preflight(self.folder, report)
        except D2CityscapesError as error:
            return Outcome("failed", reason=str(error))
        return Outcome("complete", value, results=acts)

    def kill(self) -> None: ...


FLOAT = {"type": "float", "low": 0.1, "high": 0.4}


def _check(source, *opts):
    before = set(os.listdir(source.parent))
    try:
        return check_reach(read_plan(source, opts), InThisProcess)
    finally:
        assert set(os.listdir(source.parent)) == before


def test_what_acts_says_where(write_tiny):
    acts = _check(
        write_tiny(
            space={
                "MODEL.RPN.IOU_THRESHOLDS[0]": FLOAT,
                "MODEL.FREEZE.MODULES": {
                    "type": "categorical", "choices": [["backbone"], ["backbone.bottom_up"], []],
                },
                "SOLVER.BASE_LR_END": {"type": "log", "low": 1e-6, "high": 1e-5},
                "INPUT.RANDOM_FLIP": {"type": "categorical", "choices": ["none", "horizontal"]},
                "TEST.DETECTIONS_PER_IMAGE": {"type": "int", "low": 10, "high": 50},
            }
        )
    )  # fmt: skip
    assert acts["MODEL.RPN.IOU_THRESHOLDS[0]"] == [
        "model.proposal_generator.anchor_matcher.thresholds[1]"
    ]
    assert acts["MODEL.FREEZE.MODULES"][0].startswith("model.backbone.fpn_")
    assert acts["SOLVER.BASE_LR_END"][0].startswith("schedule")
    assert acts["INPUT.RANDOM_FLIP"][0].startswith("data.")
    assert acts["TEST.DETECTIONS_PER_IMAGE"] == [
        "model.roi_heads.box_predictor.test_topk_per_image"
    ]


@pytest.mark.parametrize(
    ("sections", "opts", "message"),
    [
        # a key of another architecture
        ({"space": {"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": FLOAT}}, [],
         r"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA reaches nothing: with 0\.\d+ and with 0.1"),
        # one that another key keeps from acting
        ({"space": {"SOLVER.MOMENTUM": FLOAT}}, ["SOLVER.OPTIMIZER", "ADAMW"],
         "SOLVER.MOMENTUM reaches nothing"),
        # values that are stored, but never act
        ({"space": {"SOLVER.WARMUP_FACTOR": FLOAT}}, ["SOLVER.WARMUP_ITERS", "0"],
         "SOLVER.WARMUP_FACTOR reaches nothing: .*: it acts with SOLVER.WARMUP_ITERS above 0 only"),
        ({"space": {"MODEL.RPN.SMOOTH_L1_BETA": FLOAT}}, ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"],
         "it acts with MODEL.RPN.BBOX_REG_LOSS_TYPE smooth_l1 only"),
        ({"space": {"MODEL.FREEZE.NORM_EVAL": {"type": "categorical", "choices": [True, False]}}},
         ["MODEL.RESNETS.NORM", "FrozenBN"],
         "it acts with MODEL.FREEZE.MODULES, and norms that learn in them only"),
        ({"space": {"SOLVER.GAMMA": FLOAT}}, ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
         "SOLVER.GAMMA reaches nothing: .*: it is not read by"),
        # and that do not vary
        ({}, ["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.MOMENTUM", "0.5"],
         "1 problem: SOLVER.MOMENTUM 0.5 acts with SOLVER.OPTIMIZER SGD only; "
         "set without effect in any trial; leave out"),
        ({}, ["MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.5"],
         "MODEL.RETINANET.FOCAL_LOSS_GAMMA 1.5 is not read by StagedRCNN"),
        # two names of one thing
        ({"space": {"MODEL.RPN.CONV_DIMS": {"type": "categorical", "choices": [[-1], [64]]}}}, [],
         r"MODEL.RPN.CONV_DIMS reaches nothing: with \[(-1|64)\] and with \[(-1|64)\] the same"),
        # a module that is not there
        ({"space": {"MODEL.FREEZE.MODULES": {
            "type": "categorical", "choices": [["backbone"], ["bakbone"]]}}},
         [], r"no model can be built with MODEL.FREEZE.MODULES \['bakbone'\]: .*bakbone"),
        ({"objective": {"dataset": "shards_vall"}}, [], "'shards_vall' is not registered"),
        ({}, ["MODEL.WEIGHTS", "none.pth"], "MODEL.WEIGHTS none.pth: no such file"),
    ],
)  # fmt: skip
def test_what_cannot_act_is_one_line(write_tiny, sections, opts, message):
    defaults = {"space": {"SOLVER.BASE_LR": FLOAT}, "constraints": []}
    with pytest.raises(SearchError, match=message) as caught:
        _check(write_tiny(**defaults | sections), *opts)
    assert "\n" not in str(caught.value)


OPTIMIZERS = {"type": "categorical", "choices": ["ADAMW", "SGD"]}


@pytest.mark.parametrize(
    ("space", "opts"),
    [
        ({"SOLVER.OPTIMIZER": OPTIMIZERS, "SOLVER.MOMENTUM": FLOAT}, []),
        ({"SOLVER.OPTIMIZER": OPTIMIZERS | {"choices": ["SGD", "ADAMW"]}, "SOLVER.MOMENTUM": FLOAT},
         []),
        ({"SOLVER.WARMUP_ITERS": {"type": "int", "low": 0, "high": 2},
          "SOLVER.WARMUP_FACTOR": FLOAT}, []),
        # keys that do not vary, and act in some trials
        ({"SOLVER.OPTIMIZER": OPTIMIZERS}, ["SOLVER.MOMENTUM", "0.5"]),
        ({"SOLVER.WARMUP_ITERS": {"type": "categorical", "choices": [0, 2]}},
         ["SOLVER.WARMUP_FACTOR", "0.5"]),
    ],
)  # fmt: skip
def test_what_acts_beside_other_values_only_is_searched(write_tiny, space, opts):
    assert _check(write_tiny(space=space, constraints=[]), *opts).keys() == space.keys()


def test_keys_without_effect_may_be_allowed(write_tiny):
    source = write_tiny(space={"SOLVER.BASE_LR": FLOAT}, constraints=[])
    plan = read_plan(source, ["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.MOMENTUM", "0.5"])
    assert check_reach(plan, InThisProcess, allow_unused=True).keys() == {"SOLVER.BASE_LR"}


def test_numbers_of_hooks_are_no_difference(plan):
    """torch counts them over the whole process."""

    def nothing(cfg, name): ...

    def build(momentum):
        model = torch.nn.Linear(2, 1)
        model.register_forward_hook(print)
        optimizer = torch.optim.SGD(model.parameters(), momentum=momentum)
        optimizer.register_step_pre_hook(print)
        torch.manual_seed(0)
        model.reset_parameters()
        return fingerprint(
            SimpleNamespace(
                cfg=plan.unsampled, model=model, optimizer=optimizer, scheduler=None,
                data_loader=None, build_test_loader=nothing, build_evaluator=nothing,
            )
        )  # fmt: skip

    assert differences(build(0.5), build(0.5)) == []
    assert "optimizer.defaults['momentum']" in differences(build(0.5), build(0.6))


def test_constraints_that_pin_a_parameter(write_tiny):
    source = write_tiny(
        space={"SOLVER.BASE_LR": FLOAT, "SOLVER.MOMENTUM": FLOAT},
        constraints=["SOLVER.BASE_LR < SOLVER.MOMENTUM < SOLVER.BASE_LR + 0.01"],
    )
    assert _check(source, "SOLVER.OPTIMIZER", "SGD").keys() == {"SOLVER.BASE_LR", "SOLVER.MOMENTUM"}
