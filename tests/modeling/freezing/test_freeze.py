"""Freezing by name: patterns, schedule, report, and the optimizer."""

import pytest
from torch import nn

from d2_cityscapes.modeling.freezing.freeze import (
    FreezeError,
    find_modules,
    freeze_modules,
    freeze_report,
    later_parameters_on,
    plan_freezing,
    unwrap,
)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.fpn_lateral2 = nn.Conv2d(4, 5, 1)
        self.fpn_output2 = nn.Conv2d(5, 5, 1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(5, 2)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["backbone.stem"], ["backbone.stem"]),
        (["backbone.fpn_*"], ["backbone.fpn_lateral2", "backbone.fpn_output2"]),
        (["backbone.fpn_*2", "head"], ["backbone.fpn_lateral2", "backbone.fpn_output2", "head"]),
        (["backbone.*", "backbone"], ["backbone"]),  # outermost only
        (["head", "backbone.stem.0"], ["backbone.stem.0", "head"]),  # in the model's order
        (["backbone.stem", "backbone.stem.*"], ["backbone.stem"]),
        (["*.[01]"], ["backbone.stem.0", "backbone.stem.1"]),
        ([], []),
    ],
)
def test_patterns(patterns, expected):
    assert find_modules(Model(), patterns) == expected


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [("backbone.stm", "backbone.stem"), ("heads*", "head"), ("Backbone", "backbone")],
)
def test_unknown_pattern_lists_nearest_names(pattern, nearest):
    with pytest.raises(FreezeError, match="matches no module") as error:
        find_modules(Model(), [pattern])
    assert nearest in str(error.value).split("nearest: ")[1].split(", ")


def test_freezes_the_whole_subtree():
    model = Model()
    report = freeze_modules(model, ["backbone.stem", "backbone.fpn_lateral2"])
    assert report.frozen_modules == ("backbone.stem", "backbone.fpn_lateral2")
    assert trainable(model) == {
        *("backbone.fpn_output2.weight", "backbone.fpn_output2.bias", "head.weight", "head.bias")
    }


def test_report_counts_parameters():
    model = Model()
    model.head.bias.requires_grad_(False)  # frozen by someone else
    report = freeze_modules(model, ["backbone.stem"])
    assert report.groups == (
        ("backbone.stem", 16 + 8 + 8, 0),
        ("backbone.fpn_lateral2", 0, 25),
        ("backbone.fpn_output2", 0, 30),
        ("head", 2, 10),
    )
    assert report.frozen_parameters == 34
    assert report.trainable_parameters == 65
    lines = report.table().splitlines()
    assert lines[0].split() == ["module", "frozen", "trainable"]
    assert lines[-1].split() == ["total", "34", "65"]
    assert len({len(line) for line in lines}) == 1


def test_nothing_left_to_train():
    with pytest.raises(FreezeError, match="no parameter to train"):
        freeze_modules(Model(), ["*"])


def test_no_patterns_change_nothing():
    model = Model()
    assert freeze_modules(model, []).frozen_modules == ()
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_wrapped_model_is_looked_into():
    model = Model()
    wrapped = nn.DataParallel(model)
    assert unwrap(wrapped) is model
    assert unwrap(model) is model
    assert find_modules(wrapped, ["head"]) == ["head"]
    freeze_modules(wrapped, ["head"])
    assert not model.head.weight.requires_grad


def test_frozen_parameters_stay_out_of_the_optimizer():
    build = pytest.importorskip("detectron2.solver.build")
    model = Model()
    freeze_modules(model, ["backbone.stem"])
    groups = build.get_default_optimizer_params(model, base_lr=0.1, weight_decay_norm=0.0)
    optimized = {id(p) for group in groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert id(model.backbone.stem[1].weight) not in optimized


def frozen_at(model: nn.Module, plan, iteration: int) -> set[str]:
    """Names of the parameters that a plan freezes at an iteration."""
    layers = plan.at(iteration).frozen
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in layers}


def test_a_schedule_releases_what_it_names_and_no_more():
    model = Model()
    plan = plan_freezing(
        model, ["backbone"], [[3, ["backbone.fpn_*"]], [5, ["backbone.stem.1"]], [9, ["*"]]]
    )
    assert plan.modules == ("backbone",)
    stem = {f"backbone.stem.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    fpn = {
        f"backbone.fpn_{x}.{kind}" for x in ("lateral2", "output2") for kind in ("weight", "bias")
    }
    norm = {"backbone.stem.1.weight", "backbone.stem.1.bias"}
    for iteration, expected in [
        (0, stem | fpn), (2, stem | fpn), (3, stem), (4, stem), (5, stem - norm), (8, stem - norm),
        (9, set()), (1000, set()),
    ]:  # fmt: skip
        assert frozen_at(model, plan, iteration) == expected, iteration


def test_a_pattern_around_a_frozen_module_releases_it():
    plan = plan_freezing(Model(), ["backbone.stem"], [[3, ["backbone"]]])
    assert plan.at(3).frozen == ()


def test_the_model_begins_in_the_first_phase():
    model = Model()
    report = freeze_modules(model, ["backbone"], [[3, ["backbone.fpn_*"]]], max_iter=4)
    assert report.frozen_modules == ("backbone",)
    assert trainable(model) == {"head.weight", "head.bias"}


def test_an_entry_at_iteration_0_is_not_frozen_at_all():
    model = Model()
    report = freeze_modules(model, ["backbone"], [[0, ["backbone.fpn_*"]], [3, ["backbone"]]])
    assert report.frozen_modules == ("backbone.stem",)
    freeze_modules(plain := Model(), ["backbone.stem"])
    assert trainable(model) == trainable(plain)
    freeze_modules(Model(), ["*"], [[0, ["head"]]])  # something is left to train


def test_the_report_names_what_is_frozen_as_a_whole():
    model = Model()
    plan = plan_freezing(model, ["backbone"], [[3, ["backbone.stem.1"]]])
    report = freeze_report(model, plan.at(3).frozen)
    assert report.frozen_modules == (
        *("backbone.stem.0", "backbone.stem.2", "backbone.fpn_lateral2", "backbone.fpn_output2"),
    )


def test_what_will_train_counts_for_the_optimizer_and_only_there():
    model = Model()
    model.backbone.fpn_output2.bias.requires_grad_(False)  # frozen by someone else, for good
    freeze_modules(model, ["backbone"], [[3, ["backbone.fpn_*"]]])
    at_first = trainable(model)
    with later_parameters_on(nn.DataParallel(model)):
        assert trainable(model) - at_first == {
            *("backbone.fpn_lateral2.weight", "backbone.fpn_lateral2.bias"),
            "backbone.fpn_output2.weight",
        }
    assert trainable(model) == at_first
    with later_parameters_on(plain := Model()):
        assert trainable(plain) == trainable(Model())


def test_a_shared_parameter_waits_for_all_its_layers():
    model = Model()
    model.twin = nn.Linear(5, 2)
    model.twin.weight = model.head.weight
    freeze_modules(model, ["head", "twin"], [[1, ["head"]], [2, ["twin"]]])
    assert trainable(model).isdisjoint({"head.weight", "head.bias", "twin.bias"})
    plan = plan_freezing(model, ["head", "twin"], [[1, ["head"]], [2, ["twin"]]])
    assert plan.at(1).frozen == ("twin",)


@pytest.mark.parametrize(
    "entry",
    [3, [3], [3, "head"], [3, []], [3, [1]], ["3", ["head"]], [3.0, ["head"]], [True, ["head"]],
     [3, ["head"], 4], {3: ["head"]}],
)  # fmt: skip
def test_a_malformed_entry_is_shown_with_the_form(entry):
    with pytest.raises(FreezeError, match=r"FREEZE\.SCHEDULE: .* is not \[iteration, \[patterns\]"):
        freeze_modules(Model(), ["head"], [entry])


@pytest.mark.parametrize(
    ("modules", "schedule", "message"),
    [
        (["backbone"], [[-1, ["backbone"]]], "iteration -1 is negative"),
        (["backbone"], [[5, ["backbone.stem"]], [3, ["backbone"]]], "iteration 3 comes after 5"),
        (["backbone"], [[5, ["backbone.stem"]], [5, ["backbone"]]], "iteration 5 comes after 5"),
        (["backbone"], [[3, ["backbne"]]], r"SCHEDULE: 'backbne' .* nearest: backbone"),
        (["backbne"], [[3, ["backbone"]]], r"MODULES: 'backbne' .* nearest: backbone"),
        (["backbone"], [[3, ["head"]]], r"\[3, \['head'\]\] unfreezes nothing"),
        (["backbone"], [[3, ["backbone"]], [4, ["backbone.stem"]]], "4, .* unfreezes nothing"),
        ([], [[3, ["backbone"]]], "unfreezes nothing"),
        (["backbone"], [[10, ["backbone"]]], r"iteration 10 never comes, SOLVER.MAX_ITER is 10"),
        (["*"], [[3, ["head"]]], "no parameter to train"),
    ],
)  # fmt: skip
def test_schedules_that_cannot_act_are_refused_in_one_line(modules, schedule, message):
    model = Model()
    with pytest.raises(FreezeError, match=message) as error:
        freeze_modules(model, modules, schedule, max_iter=10)
    assert "\n" not in str(error.value)
    assert trainable(model) == {name for name, _ in model.named_parameters()}, "left as it was"


def test_what_someone_else_froze_is_not_unfrozen():
    model = Model()
    model.backbone.stem.requires_grad_(False)
    with pytest.raises(FreezeError, match="unfreezes nothing"):
        freeze_modules(model, ["backbone"], [[3, ["backbone.stem"]]])
