"""SOLVER.LR_MULTIPLIERS, WEIGHT_DECAY_OVERRIDES and LAYER_DECAY, parameter by parameter."""

from __future__ import annotations

import argparse
import itertools

import pytest
import torch
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from torch import nn

from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.step.optimizer import build_optimizer
from d2_cityscapes.engine.step.parameter_groups import check_parameter_settings, parameter_groups
from d2_cityscapes.engine.trainer import setup, train


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)
        self.embed = nn.Embedding(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x)).square().mean() + self.embed.weight.square().sum()


def _config(*opts: object):
    solver = ["SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.05]
    return load_config("", [str(opt) for opt in (*solver, *opts)])


def _settings(cfg, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> rate and weight decay."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return {
        name_of[parameter]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
def test_without_them_twenty_steps_are_those_without_the_keys(optimizer):
    """Multipliers of 1 leave each number as it is, too: only the groups are other ones."""
    cfgs = [
        _config("SOLVER.OPTIMIZER", optimizer),
        _config("SOLVER.OPTIMIZER", optimizer, "SOLVER.LR_MULTIPLIERS", '[["*", 1.0]]'),
    ]
    ends = []
    for build in (*(lambda m, c=c: build_optimizer(c, m) for c in cfgs), None):
        model = Model()
        if build is not None:
            made = build(model)
        elif optimizer == "SGD":
            made = build_detectron2_optimizer(cfgs[0], model)
        else:  # as the package did it without the keys
            norms = list(model.backbone[1].parameters())
            others = [p for p in model.parameters() if all(p is not norm for norm in norms)]
            groups = [{"params": norms, "weight_decay": 0.0}, {"params": others}]
            made = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.05)
        for step in range(20):
            made.zero_grad()
            model(torch.arange(6.0).view(2, 3) + step).backward()
            made.step()
        ends.append(list(model.parameters()))
    for end in ends[1:]:
        assert all(map(torch.equal, ends[0], end))


def test_rates_and_decays_by_hand():
    cfg = _config(
        "SOLVER.LR_MULTIPLIERS", '[["backbone.*", 0.1], ["*.bias", 2.0], ["backbone.1.*", 0.5]]',
        "SOLVER.WEIGHT_DECAY_OVERRIDES", '[["embed.*", 0.0], ["head.*", 0.2]]',
        "SOLVER.BIAS_LR_FACTOR", 3.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.01,
    )  # fmt: skip
    found = _settings(cfg, Model())
    assert found == {
        "backbone.0.weight": (pytest.approx(0.01), 0.05),
        "backbone.0.bias": (pytest.approx(0.6), 0.01),  # the last that matches, *.bias, wins
        "backbone.1.weight": (pytest.approx(0.05), 0.0),  # a norm
        "backbone.1.bias": (pytest.approx(0.15), 0.01),  # backbone.1.* comes after *.bias
        "head.weight": (pytest.approx(0.1), 0.2),
        "head.bias": (pytest.approx(0.6), 0.2),
        "embed.weight": (pytest.approx(0.1), 0.0),
    }


def test_a_step_is_that_of_the_rate():
    """Without momentum and decay what a step moves is the rate times the gradient."""
    moves = []
    for opts in ([], ["SOLVER.LR_MULTIPLIERS", '[["backbone.*", 0.25]]']):
        model = Model()
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        cfg = _config(*opts, "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0)
        optimizer = build_optimizer(cfg, model)
        model(torch.ones(2, 3)).backward()
        optimizer.step()
        moves.append({name: p.detach() - start[name] for name, p in model.named_parameters()})
    for name, whole in moves[0].items():
        part = 0.25 if name.startswith("backbone.") else 1.0
        torch.testing.assert_close(moves[1][name], part * whole, rtol=1e-4, atol=1e-7)
        assert whole.any() or name == "backbone.1.bias"


def test_the_groups_are_printed_and_as_few_as_there_are_settings(log):
    model = Model()
    model.embed.requires_grad_(False)
    cfg = _config("SOLVER.LR_MULTIPLIERS", '[["backbone.*", 0.1], ["embed.*", 0.5]]')
    groups = parameter_groups(cfg, model)
    assert [len(group["params"]) for group in groups] == [2, 2, 2]
    table = log.text.split("parameters by rate and weight decay\n")[1].splitlines()
    assert [" ".join(line.split()) for line in table[1:]] == [
        "0.01 0 2 8 rate x 0.1: backbone.*",
        "0.01 0.05 2 16 rate x 0.1: backbone.*",
        "0.1 0.05 2 10",
    ], "what is frozen matches, and is in no group"
    parameter_groups(_config(), model)
    assert log.text.count("parameters by rate") == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LR_MULTIPLIERS", '[["neck.*", 0.1]]', r"'neck.\*' matches no .* begin with backbone, h"),
        ("LR_MULTIPLIERS", '[["backbone", 0.1]]', r"'backbone' matches no parameter"),
        (
            "LR_MULTIPLIERS",
            '[["head.bias", 2.0], ["head.*", 0.1]]',
            r"'head.bias' has no effect.*the last one wins",
        ),
        ("WEIGHT_DECAY_OVERRIDES", '[["*.gamma", 0.0]]', r"'\*.gamma' matches no parameter"),
    ],
)
def test_patterns_without_effect_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_optimizer(_config(f"SOLVER.{key}", value), Model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LR_MULTIPLIERS", '["backbone.*", 0.1]', r"'backbone.\*' is not \[pattern, number\]"),
        ("LR_MULTIPLIERS", '[["backbone.*", 0.0]]', "the number above 0"),
        ("LR_MULTIPLIERS", '[["backbone.*", True]]', "is not"),
        ("LR_MULTIPLIERS", '[["backbone.*", 1e999]]', "is not"),
        ("WEIGHT_DECAY_OVERRIDES", '[["*", -0.1]]', "of 0 or more"),
        ("WEIGHT_DECAY_OVERRIDES", "[[0.1, '*']]", "is not"),
        ("LAYER_DECAY", 0.0, r"SOLVER.LAYER_DECAY 0.0: use a number above 0, up to 1"),
        ("LAYER_DECAY", 1.5, r"LAYER_DECAY 1.5: use"),
    ],
)
def test_forms_are_refused_before_anything_is_built(key, value, message):
    with pytest.raises(ConfigError, match=message):
        check_parameter_settings(_config(f"SOLVER.{key}", value))


def test_a_run_with_all_of_them_resumes_exactly(repository, datasets, tiny_opts, tmp_path):
    """With frozen parts, accumulation, an average, a fused update and the other keys of SOLVER."""
    keys = [
        "SOLVER.LR_MULTIPLIERS", '[["backbone.*", 0.1]]', "SOLVER.OPTIMIZER", "ADAMW",
        "SOLVER.WEIGHT_DECAY_OVERRIDES", '[["*.bias", 0.0]]',
        "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.POLY_LR_POWER", "0.5",
        "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01", "SOLVER.ACCUMULATE_STEPS", "2",
        "SOLVER.EMA_DECAY", "0.9", "SOLVER.FUSED", "True", "SOLVER.BASE_LR", "0.001",
        "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "DATASETS.TEST", "()",
        "MODEL.FREEZE.MODULES", '["backbone.bottom_up"]', "TEST.NUM_PICTURES", "0",
    ]  # fmt: skip
    opts = tiny_opts[: tiny_opts.index("MODEL.RPN.POST_NMS_TOPK_TRAIN")]
    opts += tiny_opts[tiny_opts.index("DATALOADER.NUM_WORKERS") :]
    args = argparse.Namespace(
        config_file=str(repository / "configs/quick/semantic.yaml"),
        opts=[*opts, "OUTPUT_DIR", str(tmp_path), *keys],
        eval_only=False,
    )

    def run(resume: bool) -> dict:
        train(setup(args), resume=resume)
        return torch.load(tmp_path / "model_final.pth", weights_only=True)

    whole = run(False)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    halves = run(True)
    assert all(tensor.equal(halves["model"][name]) for name, tensor in whole["model"].items())
    saved = whole["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert sorted({group["initial_lr"] for group in saved}) == pytest.approx([0.0001, 0.001])
    assert {group["weight_decay"] for group in saved} == {0.0, 0.0001}
    names = list(itertools.chain(*whole["trainer"]["parameters"]))
    assert names and not any("bottom_up" in name for name in names)
