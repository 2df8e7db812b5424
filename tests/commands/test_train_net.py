"""The options of the training command: what goes together, and what they hand on."""

from __future__ import annotations

import pytest

from d2_cityscapes.commands.train_net import main
from d2_cityscapes.engine import distributed, trainer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "0"], "'0' is no whole number from 1 on"),
        (["--profile", "-3"], "'-3' is no whole number from 1 on"),
        (["--profile", "many"], "'many' is no whole number from 1 on"),
        (["--dry-run", "--eval-only"], "--dry-run and --eval-only do not go together"),
        (["--dry-run", "--resume"], "--dry-run and --resume do not go together"),
        (["--dry-run", "--profile", "2"], "--dry-run and --profile do not go together"),
        (["--eval-only", "--profile", "2"], "--eval-only and --profile do not go together"),
    ],
)
def test_wrong_usage(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(options)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_options_reach_the_training(monkeypatch):
    monkeypatch.setattr(distributed, "launch", lambda main, args: main(args))
    monkeypatch.setattr(trainer, "setup", lambda args: args.opts)
    calls = []
    monkeypatch.setattr(trainer, "train", lambda cfg, **options: calls.append((cfg, options)))
    monkeypatch.setattr(trainer, "evaluate", lambda cfg, **options: calls.append((cfg, "evaluate")))
    main(["--profile", "5", "--resume", "SEED", "1"])
    main(["--allow-unused", "SEED", "2"])
    main(["--eval-only", "--resume", "SEED", "3"])  # Detectron2 takes both
    assert calls == [
        (["SEED", "1"], {"resume": True, "profile": 5, "allow_unused": False}),
        (["SEED", "2"], {"resume": False, "profile": 0, "allow_unused": True}),
        (["SEED", "3"], "evaluate"),
    ]


def test_a_dry_run_prints_and_leaves_nothing(repository, datasets, tmp_path, capsys, tiny_run):
    output = tmp_path / "out"
    main([*tiny_run, "OUTPUT_DIR", str(output)])
    printed = capsys.readouterr().out
    assert "measured with a batch of 2 images of 64 x 128 px, in float32" in printed
    assert "100.0 % of the parameters train" in printed and not output.exists()


def test_a_dry_run_stands_for_one_process_of_torchrun(datasets, capsys, monkeypatch, tiny_run):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    main([*tiny_run])
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    main([*tiny_run])
    assert "1 x 1 image on each of 2 processes: an effective batch of 2" in capsys.readouterr().out


@pytest.fixture
def tiny_run(repository) -> list[str]:
    """Options for a dry run of a small model."""
    config = repository / "configs" / "quick" / "semantic.yaml"
    return ["--config-file", str(config), "--dry-run", "SOLVER.IMS_PER_BATCH", "2"]
