"""Steps whose losses or gradients are not finite: left out, counted, and too many in a row."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from d2_cityscapes.engine.step.nonfinite import NonFiniteError
from d2_cityscapes.engine.step.training_step import TrainingStep

runs = runpy.run_path(str(Path(__file__).with_name("step_runs.py")))
sgd, run, state_of, assert_equal = (runs[n] for n in ("sgd", "run", "state_of", "assert_equal"))

NAN = float("nan")


class Model(nn.Module):
    """With running statistics, and a loss whose gradient is not finite where an image is 0.

    Where an image is infinite it does what Detectron2's RPN does with such boxes.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm = nn.BatchNorm1d(5)
        self.layer = nn.Linear(5, 3)

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        images = torch.stack([image["image"] for image in batch])
        found = self.layer(self.norm(images)).float()
        if images.isinf().any():
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        root = (self.layer.weight[0, 0] * images[:, 0]).abs().sqrt().mean()
        return {"loss_a": found.square().mean(), "loss_root": root}


def images(*spoilt: int, value: float = NAN) -> list[list[dict]]:
    """Batches of two images, those of the given numbers with a first pixel that spoils them."""
    data = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    data[[2 * number for number in spoilt], 0] = value
    return [
        [
            {"image": image, "file_name": f"{n}{side}.png"}
            for image, side in zip(pair, "ab", strict=True)
        ]
        for n, pair in enumerate(data.split(2))
    ]


def skipping(batches: list[list[dict]], limit: int, **options) -> TrainingStep:
    model = Model()
    return TrainingStep(model, batches, sgd(model), max_skipped_steps=limit, **options)


@pytest.mark.parametrize(
    ("value", "what"),
    [(NAN, "loss_a, loss_root"), (0.0, "gradients"), (float("inf"), "predictions")],
)
def test_a_step_that_is_not_finite_is_left_out(value, what, log):
    """As if there had been no such batch, norm statistics included."""
    batches = images(1, value=value)
    spoilt, clean = skipping(batches, 1), skipping([batches[0], *batches[2:]], 1)
    logged, expected = run(spoilt, 4), run(clean, 3)
    assert logged[1] == {"skipped_steps": 1}
    assert [logged[0], *logged[2:]] == expected
    assert_equal(state_of(spoilt), state_of(clean))
    line = f"iteration 1: {what} not finite: step left out, 1 in a row, 1 in all; images: 1a.png, "
    assert log.text.count("left out") == 1 and line in log.text


def test_too_many_in_a_row_end_the_training():
    run(skipping(images(1, 2, 4, 5), 2), 8)
    trainer = skipping(images(2, 3, 4), 2)
    with pytest.raises(NonFiniteError) as caught:
        run(trainer, 8)
    message, details = str(caught.value), caught.value.details
    assert "\n" not in message and message.startswith("iteration 4: loss_a, loss_root not")
    assert "MAX_SKIPPED_STEPS" in message and "4a.png, 4b.png" in message
    assert len(details) == 3 and "iteration 2" in details[0] and "2a.png, 2b.png" in details[0]
    assert all(tensor.isfinite().all() for tensor in state_of(trainer).values())


def test_a_streak_goes_on_behind_a_stop():
    before, after = skipping(images(0, 1), 2), skipping(images(0), 2)
    run(before, 2)
    after.load_state_dict(before.state_dict())
    with pytest.raises(NonFiniteError):
        run(after, 1, start=2)
    skipping([], 2).load_state_dict(skipping([], 0).state_dict())


def test_without_skipping_the_first_ends_it_as_in_detectron2():
    ours = skipping(images(1), 0)
    with pytest.raises(NonFiniteError, match=r"iteration 1: loss_a, .* images: 1a.png, 1b.png"):
        run(ours, 3)
    with pytest.raises(NonFiniteError, match=r"iteration 1: predictions not .* images: 1a.png, 1b"):
        run(skipping(images(1, value=float("inf")), 0), 3)
    model = Model()
    stock = SimpleTrainer(model, images(1), sgd(model))
    with pytest.raises(FloatingPointError):
        run(stock, 3)
    for a, b in zip(ours.model.parameters(), model.parameters(), strict=True):
        assert a.equal(b)


def test_a_scaler_that_looks_for_its_scale_is_no_trouble(log):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    options = {"autocast": torch.float16, "grad_scaler": scaler}
    trainer = skipping(images(), 1, **options)
    logged = run(trainer, 12)
    assert scaler.get_scale() < 2.0**25  # left out more than once in a row
    assert log.text == "" and all("total_loss" in step for step in logged)


def test_but_gradients_that_no_scale_helps_are():
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    options = {"autocast": torch.float16, "grad_scaler": scaler}
    with pytest.raises(NonFiniteError, match="iteration 4: gradients not finite, as in the 2 "):
        run(skipping(images(*range(8), value=0.0), 2, **options), 8)


def test_predictions_are_no_reason_to_change_the_scale():
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    options = {"autocast": torch.float16, "grad_scaler": scaler}
    trainer = skipping(images(0, 3, value=float("inf")), 1, **options)
    logged = run(trainer, 5)
    assert [step.get("skipped_steps") for step in logged] == [1, None, None, 2, None]
    assert scaler.get_scale() == 4.0
