"""d2c export: its lines, and its errors of one line."""

import pytest

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.modeling.build import build_model


@pytest.fixture
def trained(repository, tmp_path):
    import torch

    opts = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", "('cityscapes_shards_val',)"]
    cfg = load_config(repository / "configs/quick/semantic.yaml", opts, train=False)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


def test_exports_a_run_and_a_config_with_weights(trained, datasets, tmp_path, call):
    output = tmp_path / "exported"
    code, out, _ = call(
        "tools/export.py", "--format", "safetensors", "--run", trained, "--output", output,
        "--check", 2,
    )  # fmt: skip
    assert code == 0
    assert "semantics: 100.0000 % of 16384 pixels equal" in out.splitlines()
    assert out.splitlines()[-1] == f"wrote {output}"
    code, _, err = call(
        "tools/export.py", "--format", "onnx", "--config-file", trained / "config.yaml",
        "--output", trained, "MODEL.WEIGHTS", trained / "model_final.pth",
    )  # fmt: skip
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: {trained}: holds something else than an export")


def test_a_run_that_is_not_there(tmp_path, call):
    code, _, err = call(
        "tools/export.py", "--format", "onnx", "--run", tmp_path / "no", "--output", tmp_path / "o"
    )
    assert code == 1 and err.splitlines()[-1].startswith(f"error: {tmp_path / 'no'}: no such model")
