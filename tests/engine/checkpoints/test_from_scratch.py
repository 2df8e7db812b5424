"""Random networks are trained where that is meant, and else refused before anything is built."""

from __future__ import annotations

import argparse

import pytest

from d2_cityscapes.engine.setup import ConfigError, check_start, load_config
from d2_cityscapes.engine.trainer import Trainer, setup, train
from d2_cityscapes.stages.run import plan_stages

MEANT = ["MODEL.FROM_SCRATCH", "True"]
NOT_MEANT = ["MODEL.FROM_SCRATCH", "False"]


@pytest.fixture
def configure(repository, tmp_path, tiny_opts, datasets):
    """(config, overrides) -> config of one step."""

    def make(config: str, *opts: str):
        args = argparse.Namespace(
            config_file=str(repository / "configs" / config),
            opts=[
                *tiny_opts, "SOLVER.MAX_ITER", "1", "TEST.NUM_PICTURES", "0",
                "OUTPUT_DIR", str(tmp_path / "out"), *opts,
            ],
            eval_only=False,
        )  # fmt: skip
        return setup(args)

    return make


@pytest.mark.parametrize(
    ("config", "stays"),
    [
        ("demo/stage1.yaml", ", of which backbone.bottom_up would stay so"),
        ("stage3.yaml", ", with norms that never train"),
        ("panoptic/panoptic_fpn_R_50.yaml", ", with norms that never train"),
        ("demo_full/Base-demo.yaml", ""),
    ],
)
def test_a_random_network_that_nobody_asked_for(repository, config, stays):
    path = repository / "configs" / config
    with pytest.raises(ConfigError) as caught:
        check_start(load_config(path, train=False))
    message = str(caught.value)
    assert message.startswith(
        f"MODEL.WEIGHTS is empty: training would begin with a random network{stays}; "
    )
    assert "--from-scratch" in message and "\n" not in message
    check_start(load_config(path, MEANT, train=False))
    check_start(load_config(path, ["MODEL.WEIGHTS", "any.pth"], train=False))


def test_it_is_refused_before_it_is_built(configure, monkeypatch):
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("it is built"))
    for resume in (False, True):  # there is nothing to resume from
        with pytest.raises(ConfigError, match=r"MODEL.WEIGHTS is empty"):
            train(configure("demo/stage1.yaml", *NOT_MEANT), resume=resume)


def test_a_resumed_run_has_its_weights(configure, tmp_path):
    train(configure("demo/stage1.yaml", *MEANT))
    train(configure("demo/stage1.yaml", *NOT_MEANT, "SOLVER.MAX_ITER", "2"), resume=True)
    assert "model_final" in (tmp_path / "out/last_checkpoint").read_text()


def test_the_log_names_what_stays_random(configure, log):
    train(configure("demo/stage1.yaml", *MEANT))
    assert "freezes backbone.bottom_up with RANDOM weights, as MODEL.FROM_SCRATCH allows" in (
        log.text
    )


def test_the_commands_option(repository, datasets, tmp_path, tiny_opts, call):
    config = repository / "configs/demo/stage0.yaml"
    head = ["tools/train_net.py", "--config-file", config]
    tail = [*tiny_opts[: tiny_opts.index("MODEL.RPN.POST_NMS_TOPK_TRAIN")], "SOLVER.MAX_ITER", "1",
            "OUTPUT_DIR", tmp_path / "out"]  # fmt: skip
    code, _, errors = call(*head, *tail, *NOT_MEANT)
    assert code == 1 and "error: MODEL.WEIGHTS is empty" in errors.splitlines()[-1]
    code, _, errors = call(*head, "--from-scratch", *tail, "MODEL.WEIGHTS", "model.pth")
    assert code == 2 and "--from-scratch and MODEL.WEIGHTS do not go together" in errors
    assert call(*head, "--from-scratch", *tail)[0] == 0


def test_stages_are_looked_at_before_the_first_one(repository, datasets, tmp_path, call):
    configs = tmp_path / "configs"
    configs.mkdir()
    base = f"_BASE_: {repository / 'configs/demo/stage0.yaml'}\n"
    (configs / "stage0.yaml").write_text(f"{base}MODEL:\n  FROM_SCRATCH: False\n")
    output = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"MODEL.WEIGHTS is empty"):
        plan_stages(output, config_dir=configs, stages=[0])
    (configs / "stage0.yaml").write_text(f"{base}MODEL:\n  WEIGHTS: http://127.0.0.1:9/a.pth\n")
    command = ["tools/run_stages.py", "--output-dir", output, "--config-dir", configs]
    code, _, errors = call(*command, "--stages", "0")
    line = errors.splitlines()[-1]
    assert code == 1 and line.startswith("error: http://127.0.0.1:9/a.pth: cannot be fetched")
    assert not (output / "stage0/config.yaml").exists()
    (stage,) = plan_stages(
        output, config_dir=configs, stages=[0], opts=[*MEANT, "MODEL.WEIGHTS", ""]
    )
    assert stage.cfg.MODEL.WEIGHTS == ""
    code, _, errors = call(*command, "--from-scratch", "--stages", "0", "MODEL.WEIGHTS", "a.pth")
    assert code == 2 and "do not go together" in errors
