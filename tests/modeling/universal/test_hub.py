import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer, CheckpointError
from d2_cityscapes.engine.setup import ConfigError, check_weights_file
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling import build_model
from d2_cityscapes.modeling.universal.dinov2 import eomt_from_dinov2
from d2_cityscapes.modeling.universal.hub import is_hub, resolve_hub
from tests.modeling.universal.conftest import EOMT, MASK2FORMER, SWIN, universal_cfg

transformers = pytest.importorskip("transformers")
NAMES = [c.name for c in CITYSCAPES.classes]


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def save(folder: Path, name: str, values: dict, names: list[str] = NAMES, **pixels) -> Path:
    config = transformers.AutoConfig.for_model(name, **values, id2label=dict(enumerate(names)))
    kind = {"mask2former": "Mask2Former", "eomt": "Eomt"}[name] + "ForUniversalSegmentation"
    getattr(transformers, kind)(config).save_pretrained(folder)
    if pixels:
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def cfg_of(weights: Path | str, name: str = "", values: dict | None = None):
    cfg = universal_cfg(name, values or {})
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


def loaded(cfg, *, start: bool = False, exclude=()):
    model = build_model(cfg)
    checkpointer = Checkpointer(model, table=CITYSCAPES, exclude=exclude)
    if start:
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    else:
        checkpointer.load(cfg.MODEL.WEIGHTS)
    return model


@pytest.mark.parametrize(
    ("name", "values"),
    [("mask2former", {**MASK2FORMER, "backbone_config": SWIN}), ("eomt", EOMT)],
)
def test_a_folder_gives_network_and_weights(tmp_path, name, values):
    folder = save(tmp_path / "hub", name, values)
    check_weights_file(cfg_of(folder))
    cfg = resolve_hub(cfg_of(folder))
    assert name == cfg.MODEL.UNIVERSAL.NAME
    assert cfg.MODEL.UNIVERSAL.CONFIG.num_queries == 20
    model = loaded(cfg).eval()
    kind = {"mask2former": "Mask2Former", "eomt": "Eomt"}[name] + "ForUniversalSegmentation"
    theirs = getattr(transformers, kind).from_pretrained(folder).eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs(image).class_queries_logits
        found = model._layers(model.network, image, [1.0, 1.0])[-1].classes
    torch.testing.assert_close(found, wanted)


def test_the_config_needs_the_folder_no_longer(tmp_path):
    cfg = resolve_hub(cfg_of(save(tmp_path / "hub", "eomt", EOMT)))
    text = cfg.dump()
    shutil.rmtree(tmp_path / "hub")
    again = universal_cfg("", {})
    (tmp_path / "config.yaml").write_text(text)
    again.merge_from_file(str(tmp_path / "config.yaml"))
    again.MODEL.WEIGHTS = ""
    assert build_model(again).network.config.num_queries == 20


def test_a_name_in_the_cache_is_used_without_asking_anybody(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--somebody--segmentor"
    save(root / "snapshots" / "abc", "eomt", EOMT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    cfg = cfg_of("somebody/segmentor")
    check_weights_file(cfg)
    assert resolve_hub(cfg).MODEL.UNIVERSAL.NAME == "eomt"
    assert len(loaded(resolve_hub(cfg)).network.layers) == 3


def test_a_name_that_nobody_gives_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot_download(name, *, local_files_only=False, **kwargs):
        raise OSError("not in the cache" if local_files_only else "no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(D2CityscapesError, match=r"no route to host.*download it elsewhere"):
        resolve_hub(cfg_of("somebody/segmentor"))


def test_files_that_are_not_there_are_no_names(tmp_path):
    assert not is_hub("")
    assert not is_hub("output/model_final.pth")
    assert not is_hub(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        check_weights_file(cfg_of("output/model_final.pth"))


def test_other_classes_keep_their_predictor_out(tmp_path, caplog):
    folder = save(tmp_path / "hub", "eomt", EOMT, names=[f"thing {i}" for i in range(133)])
    model = loaded(resolve_hub(cfg_of(folder)), start=True)
    assert model.network.class_predictor.out_features == 20
    with pytest.raises(CheckpointError, match=r"trained for the classes"):
        loaded(resolve_hub(cfg_of(folder)))


def test_as_many_classes_of_other_names_are_refused(tmp_path):
    folder = save(tmp_path / "hub", "eomt", EOMT, names=NAMES[::-1])
    cfg = resolve_hub(cfg_of(folder))
    with pytest.raises(CheckpointError, match=r"WEIGHTS_EXCLUDE .*network.class_predictor"):
        loaded(cfg, start=True)
    loaded(cfg, start=True, exclude=["network.class_predictor.*"])


def test_a_backbone_alone_begins_a_training(tmp_path):
    config = transformers.AutoConfig.for_model(**MASK2FORMER["backbone_config"])
    theirs = transformers.ResNetModel(config)
    theirs.save_pretrained(tmp_path / "resnet")
    cfg = resolve_hub(cfg_of(tmp_path / "resnet", "mask2former", MASK2FORMER))
    model = loaded(cfg, start=True)
    ours = model.network.model.pixel_level_module.encoder.state_dict()
    wanted = theirs.state_dict()
    assert {n for n in wanted if not torch.equal(wanted[n], ours[n])} == set()
    with pytest.raises(D2CityscapesError, match="a resnet; UniversalSegmentor takes"):
        resolve_hub(cfg_of(tmp_path / "resnet"))
    with pytest.raises(D2CityscapesError, match="a resnet; a eomt begins with"):
        loaded(resolve_hub(cfg_of(tmp_path / "resnet", "eomt", EOMT)), start=True)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_eomt_begins_with_dinov2(tmp_path, kind):
    values = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    if kind != "dinov2":
        values["num_register_tokens"] = 2
    config = transformers.AutoConfig.for_model(kind, **values, image_size=42, patch_size=14)
    theirs = transformers.AutoModel.from_config(config)
    theirs.save_pretrained(tmp_path / "dinov2")
    own = {**EOMT, "num_register_tokens": values.get("num_register_tokens", 0)}
    model = loaded(resolve_hub(cfg_of(tmp_path / "dinov2", "eomt", own)), start=True)
    ours, wanted = model.network.state_dict(), theirs.state_dict()
    assert torch.equal(
        ours["layers.2.attention.out_proj.weight"],
        wanted["encoder.layer.2.attention.o_proj.weight"],
    )
    assert torch.equal(ours["layernorm.weight"], wanted["layernorm.weight"])
    places = wanted["embeddings.position_embeddings"]
    assert torch.equal(
        ours["embeddings.cls_token"][0], wanted["embeddings.cls_token"][0] + places[:, 0]
    )


def test_positions_and_patches_are_resampled_as_in_timm():
    layers = pytest.importorskip("timm.layers")
    generator = torch.Generator().manual_seed(0)
    weights = {
        "embeddings.position_embeddings": torch.randn(1, 26, 8, generator=generator),
        "embeddings.cls_token": torch.zeros(1, 1, 8),
        "embeddings.patch_embeddings.projection.weight": torch.randn(
            8, 3, 14, 14, generator=generator
        ),
    }
    found = eomt_from_dinov2(weights, patch_size=16, grid=(4, 6))
    places = layers.resample_abs_pos_embed(
        weights["embeddings.position_embeddings"][:, 1:], (4, 6), num_prefix_tokens=0
    )
    torch.testing.assert_close(found["embeddings.position_embeddings.weight"], places[0])
    name = "embeddings.patch_embeddings.projection.weight"
    patches = layers.resample_patch_embed(weights[name], [16, 16])
    torch.testing.assert_close(found[name], patches, atol=1e-4, rtol=1e-4)
    same = eomt_from_dinov2(weights, patch_size=14, grid=(5, 5))
    assert torch.equal(same[name], weights[name])


def test_pixels_of_another_scale_are_refused(tmp_path):
    folder = save(
        tmp_path / "hub", "eomt", EOMT, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_rescale=True
    )
    with pytest.raises(D2CityscapesError, match=r"PIXEL_MEAN .*trained with \[127.5"):
        resolve_hub(cfg_of(folder))
    cfg = cfg_of(folder)
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5, 127.5, 127.5]
    assert resolve_hub(cfg).MODEL.UNIVERSAL.NAME == "eomt"


def test_a_folder_of_something_else_is_one_line(tmp_path):
    folder = save(tmp_path / "hub", "eomt", EOMT)
    (folder / "config.json").write_text("{")
    with pytest.raises(D2CityscapesError, match=r"config.json: cannot be used"):
        resolve_hub(cfg_of(folder))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(D2CityscapesError, match="a bert"):
        resolve_hub(cfg_of(folder))
