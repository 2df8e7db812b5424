"""The training loader: the same samples for a seed, however they are loaded, and after a resume."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

from d2_cityscapes import get_cfg
from d2_cityscapes.data import register_cityscapes_shards, write_shards
from d2_cityscapes.data.loader import build_train_loader
from d2_cityscapes.data.training_set import LoaderError, TrainingImages, training_images

CAR, TRUCK = 26000, 27000


def make_cfg(*opts):
    """8 scenes in 4 shards, augmented by everything that draws random numbers."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("cityscapes_shards_val",)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (40, 48, 64, 80), 200
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, [0.8, 0.8]
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 3
    cfg.merge_from_list(list(opts))
    return cfg


def seen(batches) -> list[list[tuple]]:
    """What each batch shows: names, and checksums of pixels and boxes as they were augmented."""

    def checksum(tensor: torch.Tensor) -> int:
        return zlib.crc32(tensor.numpy().tobytes())

    return [
        [
            (d["image_id"], checksum(d["image"]), checksum(d["instances"].gt_boxes.tensor))
            for d in batch
        ]
        for batch in batches
    ]


def names(batches) -> list[str]:
    return [d["image_id"] for batch in batches for d in batch]


def take(loader, count: int) -> list:
    return list(islice(loader, count))


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def untouched(dataset_dict: dict) -> dict:
    return dict(dataset_dict)


@pytest.fixture
def register(tmp_path, array_source):
    """(name, ids of each image) -> a dataset, in two shards."""
    made = []

    def make(name: str, ids: list[np.ndarray]) -> str:
        sources = [
            array_source(
                f"{name}_{i:06d}_000019_leftImg8bit.png", np.full((*x.shape, 3), i, np.uint8), x
            )
            for i, x in enumerate(ids)
        ]
        write_shards(sources, tmp_path / name, split="train", partitions=2)
        register_cityscapes_shards(name, tmp_path / name, split="train")
        made.append(name)
        return name

    yield make
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def scene(*objects: int, size: tuple[int, int] = (16, 32)) -> np.ndarray:
    """Road with a 4 x 4 square for each object."""
    ids = np.full(size, 7, np.int32)
    for k, segment in enumerate(objects):
        ids[2:6, 6 * k : 6 * k + 4] = segment
    return ids


# --- the order, and what it depends on ---------------------------------------------------------


def test_the_zero_setting_is_detectron2s_order(datasets):
    cfg = make_cfg()
    stock = build_detection_train_loader(
        cfg, mapper=untouched, sampler=TrainingSampler(8, seed=cfg.SEED)
    )
    ours = build_train_loader(cfg, mapper=untouched)
    assert names(take(ours, 20)) == names(take(stock, 20))


@pytest.mark.parametrize("grouping", [True, False])
def test_workers_change_nothing(datasets, grouping):
    opts = ("DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    expected = seen(take(build_train_loader(make_cfg(*opts)), 9))
    for workers in (1, 2):
        loader = build_train_loader(make_cfg(*opts, "DATALOADER.NUM_WORKERS", workers))
        assert seen(take(loader, 9)) == expected


def test_other_random_numbers_change_nothing(datasets):
    expected = seen(take(build_train_loader(make_cfg()), 6))
    batches = []
    for batch in islice(build_train_loader(make_cfg()), 6):
        batches.append(batch)
        seed_everything(0)
    assert seen(batches) == expected


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_process_keeps_its_own_random_numbers(datasets, workers, grouping):
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(1)
    expected = [draw() for _ in range(4)]
    seed_everything(1)
    opts = ("DATALOADER.NUM_WORKERS", workers, "DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    loader = build_train_loader(make_cfg(*opts))
    assert [draw() for _ in islice(loader, 4)] == expected


def test_an_image_is_augmented_anew_in_every_epoch(datasets):
    samples = [x for batch in seen(take(build_train_loader(make_cfg()), 16)) for x in batch]
    times = Counter(name for name, *_ in samples)
    assert set(times.values()) == {4}  # 16 x 2 samples of 8 images
    versions = Counter(name for name, *_ in set(samples))
    assert min(versions.values()) > 1 and sum(versions.values()) > 24


def test_the_seed_decides(datasets):
    a, b, c = (seen(take(build_train_loader(make_cfg("SEED", s)), 4)) for s in (1, 1, 2))
    assert a == b != c


def test_shard_local_finishes_a_shard_before_the_next(datasets):
    loader = build_train_loader(make_cfg("DATALOADER.SHARD_LOCAL", True), mapper=untouched)
    batches = take(loader, 40)  # 4 shards of 2 images: a batch is a shard
    assert all(batch[0]["shard"] == batch[1]["shard"] for batch in batches)
    for epoch in range(10):
        assert len(set(names(batches[4 * epoch : 4 * epoch + 4]))) == 8
    assert len({batches[4 * epoch][0]["shard"] for epoch in range(10)}) > 1


def test_repeat_factors_come_from_the_tables(register):
    name = register("rare", [scene(CAR)] * 7 + [scene(CAR + 1, TRUCK)])
    opts = (
        "DATASETS.TRAIN", (name,),
        "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD", 0.5,
    )  # fmt: skip
    order = names(take(build_train_loader(make_cfg(*opts), mapper=untouched), 45))
    factors = torch.tensor([1.0] * 7 + [2.0])  # sqrt(0.5 / (1 / 8)) = 2
    expected = islice(RepeatFactorTrainingSampler(factors, seed=3), 90)
    assert order == [f"rare_{i:06d}_000019" for i in expected]
    cfg = make_cfg(*opts, "DATALOADER.SHARD_LOCAL", True)
    order = names(take(build_train_loader(cfg, mapper=untouched), 9))  # two epochs of 9 images
    assert Counter(order[:9]) == Counter(order[9:])
    assert Counter(order[:9]) == {f"rare_{i:06d}_000019": 1 + (i == 7) for i in range(8)}


def test_a_subset_stays_the_same(datasets):
    cfg = make_cfg(
        "DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler",
        "DATALOADER.RANDOM_SUBSET_RATIO", 0.5,
    )  # fmt: skip
    order = names(take(build_train_loader(cfg, mapper=untouched), 20))
    assert set(Counter(order).values()) == {10} and len(set(order)) == 4


# --- the images ----------------------------------------------------------------------------------


def test_images_without_objects_follow_the_key(register):
    name = register("sparse", [scene(), scene(CAR), scene(26), scene(CAR, TRUCK)])
    cfg = make_cfg("DATASETS.TRAIN", (name,))
    assert len(set(names(take(build_train_loader(cfg), 4)))) == 4
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    kept = set(names(take(build_train_loader(cfg), 4)))
    assert kept == {"sparse_000001_000019", "sparse_000003_000019"}


@pytest.mark.parametrize(
    ("architecture", "panoptic"),
    [
        ("SemanticSegmentor", False),
        ("DeepLabV3Segmentor", False),
        ("SeamlessPanoptic", True),
        ("SeamlessPanoptic", False),
    ],
)
def test_a_semantic_head_learns_from_images_without_objects(register, architecture, panoptic):
    """Road and sky need no instance: 4 of 4, with Detectron2's default of the key."""
    cfg = make_cfg("DATASETS.TRAIN", (register("bare", [scene(), scene(CAR), scene(26), scene()]),))
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = panoptic
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert len(set(names(take(build_train_loader(cfg, mapper=untouched), 8)))) == 4
    assert str(training_images(cfg)) == "4 of 4 images"


def test_what_is_trained_on_is_recorded(register, caplog):
    cfg = make_cfg(
        "DATASETS.TRAIN", (register("rec", [scene(), scene(CAR), scene(26), scene(CAR)]),)
    )
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.RANDOM_SUBSET_RATIO = (
        "RandomSubsetTrainingSampler",
        0.5,
    )
    left_out = {
        "without instances: DATALOADER.FILTER_EMPTY_ANNOTATIONS": 2,
        "not in the subset: DATALOADER.RANDOM_SUBSET_RATIO": 1,
    }
    expected = TrainingImages(1, 4, left_out)
    with caplog.at_level("INFO"):
        loader = build_train_loader(cfg, mapper=untouched)
    assert loader.images == training_images(cfg) == expected
    assert (
        "training on 1 of 4 images (2 without instances: DATALOADER.FILTER_EMPTY_ANNOTATIONS, "
        "1 not in the subset: DATALOADER.RANDOM_SUBSET_RATIO)"
    ) in caplog.text
    assert len(set(names(take(loader, 6)))) == expected.used


def test_what_has_no_truth_is_not_trained_on(register):
    name = register("secret", [scene(), scene()])
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).set(tasks=())
    with pytest.raises(LoaderError, match="secret: has no annotations to train on"):
        build_train_loader(make_cfg("DATASETS.TRAIN", (name,)))


def test_annotations_stay_behind(datasets):
    (batch,) = take(build_train_loader(make_cfg(), mapper=untouched), 1)
    (expected,) = (
        d
        for d in get_detection_dataset_dicts("cityscapes_shards_val", filter_empty=False)
        if d["image_id"] == batch[0]["image_id"]
    )
    assert expected.pop("annotations") is not None
    assert batch[0] == expected


def test_orientations_are_batched_apart(register):
    wide = register("wide", [scene(CAR)] * 5)
    tall = register("tall", [scene(CAR, size=(32, 16))] * 5)
    for workers in (0, 2):
        cfg = make_cfg("DATASETS.TRAIN", (wide, tall), "DATALOADER.NUM_WORKERS", workers)
        batches = take(build_train_loader(cfg), 15)
        assert all(len({d["image_id"][:4] for d in batch}) == 1 for batch in batches)
        assert {d["image_id"][:4] for batch in batches for d in batch} == {wide, tall}


# --- stopping and going on -----------------------------------------------------------------------


def test_nothing_happens_before_the_first_batch(datasets):
    calls = []

    def mapper(dataset_dict: dict) -> dict:
        calls.append(dataset_dict["image_id"])
        return dataset_dict

    uninterrupted = names(take(build_train_loader(make_cfg(), mapper=untouched), 5))
    loader = build_train_loader(make_cfg(), mapper=mapper)
    batches = iter(loader)
    assert not calls and loader.state_dict() == {"seed": 3, "position": 0}
    loader.load_state_dict({"seed": 3, "position": 6})
    assert names([next(batches), next(batches)]) == uninterrupted[6:]
    assert loader.state_dict() == {"seed": 3, "position": 10}


@pytest.mark.parametrize("shard_local", [False, True])
@pytest.mark.parametrize(
    "sampler",
    ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"],
)
def test_resume_goes_on_where_training_was(datasets, sampler, shard_local):
    """Batches that a worker had prepared but training never saw are not lost."""

    def loader(workers: int, seed: int):
        return build_train_loader(
            make_cfg(
                "DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.SHARD_LOCAL", shard_local,
                "DATALOADER.REPEAT_THRESHOLD", 0.9, "DATALOADER.RANDOM_SUBSET_RATIO", 0.7,
                "DATALOADER.NUM_WORKERS", workers, "SEED", seed,
            )
        )  # fmt: skip

    first = loader(workers=1, seed=3)
    before = seen(take(first, 5))  # in the middle of an epoch
    state = first.state_dict()
    assert state == {"seed": 3, "position": 10}
    second = loader(workers=0, seed=4)  # the seed of the run counts, not that of the new config
    second.load_state_dict(state)
    after = seen(take(second, 5))
    assert before + after == seen(take(loader(workers=0, seed=3), 10))
    assert second.state_dict() == {"seed": 3, "position": 20}


def test_a_random_seed_is_kept_for_the_resume(datasets):
    first, second = (build_train_loader(make_cfg("SEED", -1)) for _ in range(2))
    assert first.seed != second.seed
    take(first, 3)
    second.load_state_dict(first.state_dict())
    assert seen(take(second, 3)) == seen(take(first, 3))


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("DATALOADER.SAMPLER_TRAIN", "Sampler"), r"'Sampler': use one of TrainingSampler, Rep"),
        (
            (
                "DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler",
                "DATALOADER.RANDOM_SUBSET_RATIO", 0.1,
            ),
            r"RANDOM_SUBSET_RATIO 0.1: no subset of 8 images",
        ),
        (("SOLVER.IMS_PER_BATCH", 0), r"IMS_PER_BATCH 0: not a positive multiple of the 1 "),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(datasets, opts, message):
    with pytest.raises(LoaderError, match=message) as caught:
        build_train_loader(make_cfg(*opts))
    assert "\n" not in str(caught.value)


def test_datasets_that_cannot_be_used(register):
    cfg = make_cfg("DATASETS.TRAIN", (register("empty", [scene(), scene(26)]),))
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    with pytest.raises(LoaderError, match=r"empty: No valid data.*FILTER_EMPTY_ANNOTATIONS"):
        build_train_loader(cfg)
    DatasetCatalog.register("no_shards", lambda: [{"file_name": "a.png", "annotations": []}])
    try:
        with pytest.raises(LoaderError, match="no_shards: not datasets of shards"):
            build_train_loader(make_cfg("DATASETS.TRAIN", ("no_shards",)))
    finally:
        DatasetCatalog.remove("no_shards")


# --- ranks ---------------------------------------------------------------------------------------


def run_rank(rank: int, folder: str) -> None:
    """Load four batches of four images, as one process of two, with a seed that nobody gave."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    loader = build_train_loader(make_cfg("SOLVER.IMS_PER_BATCH", 4, "SEED", -1))
    batches = seen(take(loader, 4))
    Path(folder, f"{rank}.json").write_text(json.dumps([batches, loader.state_dict()]))
    torch.distributed.barrier()  # neither tears the connection down under the other
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a normal exit of the interpreter


def test_two_processes_divide_each_epoch(datasets, tmp_path):
    commands = [[sys.executable, __file__, str(rank), tmp_path] for rank in range(2)]
    ranks = [subprocess.Popen(command) for command in commands]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    (zero, state), (one, other_state) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert state == other_state and state["position"] == 16
    for epoch in (slice(0, 2), slice(2, 4)):  # 8 images, 2 x 2 in a batch
        shown = [[name for batch in part[epoch] for name, *_ in batch] for part in (zero, one)]
        assert len(set(shown[0] + shown[1])) == 8 == len(shown[0] + shown[1])
    together = [
        [tuple(sample) for pair in zip(*batches, strict=True) for sample in pair]
        for batches in zip(zero, one, strict=True)
    ]
    alone = build_train_loader(make_cfg("SOLVER.IMS_PER_BATCH", 4))
    alone.load_state_dict({"seed": state["seed"], "position": 4})  # after one batch of the two
    assert seen(take(alone, 3)) == together[1:]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2])


PASTE = ("INPUT.COPY_PASTE.PROB", 1.0)


def test_pasted_samples_are_those_of_the_seed(datasets):
    """Whatever loads them, and after a resume; and others than without."""
    whole = seen(take(build_train_loader(make_cfg(*PASTE)), 6))
    assert seen(take(build_train_loader(make_cfg(*PASTE)), 6)) == whole
    assert seen(take(build_train_loader(make_cfg(*PASTE, "DATALOADER.NUM_WORKERS", 2)), 6)) == whole
    resumed = build_train_loader(make_cfg(*PASTE))
    before = build_train_loader(make_cfg(*PASTE))
    take(before, 3)
    resumed.load_state_dict({"seed": 3, "position": 6})
    assert seen(take(resumed, 3)) == whole[3:]
    plain = seen(take(build_train_loader(make_cfg()), 6))
    assert names_of(plain) == names_of(whole) and plain != whole


def names_of(batches) -> list[str]:
    return [sample[0] for batch in batches for sample in batch]


def test_things_are_pasted_from_images_that_are_trained_on(register):
    """Those of the same shard, where these are read one after another."""
    ids = [scene(CAR + k) for k in range(4)]  # the road of each image has the colour of its number
    name = register("pasted_from", ids)
    for shard_local in (False, True):
        cfg = make_cfg(
            *PASTE, "INPUT.COPY_PASTE.THINGS", 1.0, "INPUT.COPY_PASTE.SMALL_COPIES", 1,
            "INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.CROP.ENABLED", False, "INPUT.RANDOM_FLIP", "none",
            "INPUT.COPY_PASTE.STUFF", 0.0, "SOLVER.IMS_PER_BATCH", 1,
            "DATALOADER.SHARD_LOCAL", shard_local,
        )  # fmt: skip
        cfg.DATASETS.TRAIN = (name,)
        pairs = set()
        for (sample,) in take(build_train_loader(cfg), 40):
            own = int(sample["image"][0, 15, 31])
            pairs.add((own, int(sample["image"][0, 3, 1])))
        assert all(a != b for a, b in pairs)
        shards = [(0, 1), (1, 0), (2, 3), (3, 2)]
        assert pairs == {*shards} if shard_local else len(pairs) > 8


def test_a_loader_without_second_images_is_refused(datasets):
    from d2_cityscapes.data import CityscapesShardMapper
    from d2_cityscapes.errors import D2CityscapesError

    cfg = make_cfg(*PASTE)
    (d, *_) = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    with pytest.raises(D2CityscapesError, match="gives no second image to paste from; take"):
        CityscapesShardMapper(cfg, True)(d)


@pytest.mark.parametrize("name", ["ClassBalancedTrainingSampler", "SmallObjectTrainingSampler"])
def test_balanced_samplers_log_their_factors_and_draw_by_them(register, caplog, name):
    """One image of ten has a truck, and small objects: half of the samples are of it."""
    ids = [scene(CAR, size=(70, 70)) for _ in range(9)] + [scene(TRUCK, size=(70, 70))]
    for own in ids[:9]:
        own[10:60, 10:60] = CAR + 1
        own[2:6] = 7
    cfg = make_cfg("DATALOADER.SAMPLER_TRAIN", name, "DATALOADER.BALANCE", 1.0)
    cfg.DATASETS.TRAIN = (register(f"rare_{name}", ids),)
    with caplog.at_level("INFO", logger="d2_cityscapes.data.loader"):
        loader = build_train_loader(cfg, mapper=untouched)
    (table,) = [m for m in caplog.messages if "how often images come" in m]
    row = next(line.split() for line in table.splitlines() if line.startswith("truck"))
    truck = 5.0 if name.startswith("Class") else 10.0
    assert row == ["truck", "1", "1", "1", f"{truck:.2f}"]
    counts = Counter(names(take(loader, 50)))
    assert counts[f"rare_{name}_000009_000019"] / 100 == pytest.approx(truck / 10, abs=0.05)
    resumed = build_train_loader(cfg, mapper=untouched)
    resumed.load_state_dict({"seed": 3, "position": 40})
    assert names(take(resumed, 5)) == names(
        take(build_train_loader(cfg, mapper=untouched), 25)[20:]
    )
