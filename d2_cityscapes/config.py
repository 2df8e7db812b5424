"""Every config key that this package adds to Detectron2's, with its default.

The default of each key leaves stock Detectron2 behaviour as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as _get_detectron2_cfg

__all__ = ["add_d2_cityscapes_config", "get_cfg", "leaves", "model_tasks", "plain", "value_of"]


def get_cfg() -> CN:
    """Detectron2's default config with the keys of this package added. A new copy every call."""
    cfg = _get_detectron2_cfg()
    add_d2_cityscapes_config(cfg)
    return cfg


def add_d2_cityscapes_config(cfg: CN) -> None:
    """Add the keys of this package to ``cfg``, in place."""
    # w in (1 - w) * standard losses + w * GIoU loss, over ALL standard losses (RPN, class, box,
    # mask, semantic). Needs MODEL.ROI_HEADS.NAME "GIoUROIHeads" where it is above 0.
    cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.0
    # What w weighs: "giou", "diou" (Zheng et al., AAAI 2020) or "ciou" (the same).
    cfg.MODEL.ROI_BOX_HEAD.IOU_LOSS = "giou"

    # MODEL.ANCHOR_GENERATOR.NAME "KMeansAnchorGenerator" reads its sizes and ratios from SOURCE, a
    # JSON file written by d2c anchors. "" uses SIZES and ASPECT_RATIOS as they stand.
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS = CN()
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE = ""
    # How many sizes (one for each feature level) and height/width ratios the tool looks for.
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES = 5
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.NUM_RATIOS = 3
    # "separate": k-means of sizes and, apart from it, of ratios, on logarithmic scales; one set of
    # ratios for all levels. "joint": sizes, and the ratios of each level, by the distance 1 - IoU
    # to the boxes. "paper": as "separate", but by the staged paper's way, on plain scales without
    # the lowest and highest 3 %.
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.METHOD = "separate"

    # A training may begin from weights of other anchors, which then have to be learned anew. False:
    # it is refused, as resuming and evaluating with other anchors is in any case.
    cfg.MODEL.ANCHOR_GENERATOR.KMEANS.ALLOW_OTHER = False

    # A training without MODEL.WEIGHTS begins with a random network, of which frozen parts, norms of
    # "FrozenBN" among them, stay random. False: it is refused.
    cfg.MODEL.FROM_SCRATCH = False
    # Parts of the model that MODEL.WEIGHTS does not fill: shell-style patterns over the names of
    # parameters and buffers, e.g. "roi_heads.*". They keep their random initialisation.
    cfg.MODEL.WEIGHTS_EXCLUDE = []

    # Modules that do not train: shell-style patterns over the names of model.named_modules(), each
    # freezing the whole module, e.g. "backbone.bottom_up" or "backbone.fpn_*".
    cfg.MODEL.FREEZE = CN()
    cfg.MODEL.FREEZE.MODULES = []
    # Keep normalisation layers of frozen modules in eval mode, so that their statistics stay too.
    cfg.MODEL.FREEZE.NORM_EVAL = True
    # Progressive unfreezing inside one run: [[iteration, [patterns]], ...] in ascending order; what
    # matches begins to train at that iteration, e.g. [[500, ["backbone.fpn_*"]], [900, ["*"]]].
    # What Detectron2 froze (MODEL.BACKBONE.FREEZE_AT) stays frozen.
    cfg.MODEL.FREEZE.SCHEDULE = []

    # "DeepLabV3Segmentor" adds this times the loss of torchvision's auxiliary head, which stays in
    # the weights in any case.
    cfg.MODEL.DEEPLAB = CN()
    cfg.MODEL.DEEPLAB.AUX_LOSS_WEIGHT = 0.0
    # Train void pixels as this class of the semantic head, which is never predicted; -1 leaves them
    # out (MODEL.SEM_SEG_HEAD.IGNORE_VALUE). DeepLabV3Segmentor only.
    cfg.MODEL.SEM_SEG_HEAD.VOID_CLASS = -1
    # "MiniDLSemSegHead": (height, width) of the window that its context is averaged over, in cells
    # of every level; no larger than the map.
    cfg.MODEL.SEM_SEG_HEAD.POOL_SIZE = [64, 64]
    # The part of the pixels of each image, those with the largest loss, that its loss counts.
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K = 0.25

    # "UniversalSegmentor": a network of Hugging Face transformers that predicts masks, each with a
    # class. NAME is "mask2former" or "eomt"; CONFIG its settings, by transformers' names, where
    # they differ from its defaults. Both come from MODEL.WEIGHTS where that is a folder or a name
    # of the Hub and NAME is "". The number of classes is that of the data.
    cfg.MODEL.UNIVERSAL = CN()
    cfg.MODEL.UNIVERSAL.NAME = ""
    cfg.MODEL.UNIVERSAL.CONFIG = CN(new_allowed=True)
    # A mask for each instance of a thing class; False: one for each class, for semantics alone.
    cfg.MODEL.UNIVERSAL.INSTANCES = True
    # Panoptics: least score of a mask, and least part of it that no better mask covers.
    cfg.MODEL.UNIVERSAL.OBJECT_THRESHOLD = 0.8
    cfg.MODEL.UNIVERSAL.OVERLAP_THRESHOLD = 0.8
    # "eomt": [start, end] as parts of SOLVER.MAX_ITER between which its blocks, one after another,
    # cease to mask their attention; [1/6, 5/6] in its paper. []: they do as in the weights.
    cfg.MODEL.UNIVERSAL.MASK_ANNEALING = []

    # The norms of the Seamless model are MODEL.{RESNETS,FPN,RPN,ROI_BOX_HEAD,ROI_MASK_HEAD,
    # SEM_SEG_HEAD}.NORM. "SyncBN" computes what the in-place activated batch norm (iABN) of the
    # reference does; for the backward pass it keeps about twice as much.
    # "SeamlessRPNHead": the norm behind its 3x3 convolution, "" for none.
    cfg.MODEL.RPN.NORM = ""
    # "build_seamless_resnet_fpn_backbone": how many levels it makes above P5, from p6 on.
    cfg.MODEL.FPN.EXTRA_LEVELS = 1

    # Compile the dense part (backbone, RPN head, semantic head) with torch.compile.
    cfg.MODEL.COMPILE = False
    # What torch.compile is told: "default"; "reduce-overhead", which replays CUDA graphs, one for
    # each size of a batch; "max-autotune", which looks for the fastest kernels, and replays graphs;
    # "max-autotune-no-cudagraphs". Not with ACCUMULATE_STEPS above 1 where graphs are replayed.
    # None of it has been run on a GPU yet.
    cfg.MODEL.COMPILE_MODE = "default"
    # Keep only the inputs of the backbone's stages (res2 to res5) in memory, and compute what lies
    # inside again in the backward pass: less memory, more time, the same gradients.
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = False
    # Multiply the scale of each frozen batch norm into the weights of the convolution before it
    # instead of into its output: one pass over the map less. The weights stay as they are.
    cfg.MODEL.RESNETS.FOLD_FROZEN_NORM = False

    # Let RPN and ROI heads train without asking the GPU for numbers all the time, three times a
    # step instead of 26 times and 15 times an image, and match anchors in bounded memory. On the
    # CPU the same to the bit; on a GPU the samplers draw other, equally likely anchors and
    # proposals from the same seed, and the RPN adds its losses in another order.
    cfg.MODEL.WAIT_FREE = False

    # "build_timm_fpn_backbone", "build_seamless_timm_fpn_backbone": a network of timm under an FPN,
    # or where all its maps have one size (plain ViTs) under a simple feature pyramid; under
    # "DeepLabV3Segmentor" the network alone. MODEL.PIXEL_MEAN and PIXEL_STD, where they are not
    # set, become those of its weights. NAME is of timm.list_models(), perhaps with a tag (".in1k").
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""
    # Begin with timm's weights where MODEL.WEIGHTS is empty: from the Hugging Face Hub, or from
    # FILE, a file of it, or a folder as the Hub has it, with config.json.
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.TIMM.FILE = ""
    # Its maps by their stride, "res2" of 4 pixels to "res5" of 32. []: MODEL.FPN.IN_FEATURES, and
    # where that is empty too, all that it has.
    cfg.MODEL.TIMM.OUT_FEATURES = []
    # How often stochastic depth leaves out its last block, and the earlier ones less. 0: never.
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    # Its batch norms as "FrozenBN" or "SyncBN"; "" for what they are.
    cfg.MODEL.TIMM.NORM = ""
    # Pixels in a cell of its last map under "DeepLabV3Segmentor": 8 or 16.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 8

    # Width of the hidden layers of "MLPMaskHead", of which there are NUM_CONV.
    cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 1024

    # "SGD" (Detectron2's own optimizer, with SOLVER.MOMENTUM and NESTEROV), "ADAM" or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Batches of IMS_PER_BATCH images whose gradients make one optimizer step. MAX_ITER and all the
    # other lengths count optimizer steps; the effective batch is IMS_PER_BATCH * ACCUMULATE_STEPS.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # What SOLVER.AMP.ENABLED computes in: "float16", with a gradient scaler, or "bfloat16", without
    # one. Both also on the CPU.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Keep images, weights and features in memory pixel by pixel (NHWC) instead of map by map. On a
    # GPU for models with batch norms, frozen or not: group norm there wants map by map, so that
    # every map would be turned round before and behind it.
    cfg.SOLVER.CHANNELS_LAST = False
    # Products of float32 numbers as TF32 on CUDA cards from Ampere on: "all"; "none"; "" for what
    # PyTorch does, which is: for convolutions, not for matrix products.
    cfg.SOLVER.TF32 = ""
    # Let a GPU add in the same order each time, so that the same run gives the same weights bit for
    # bit (torch.use_deterministic_algorithms), as the CPU does in any case. RoIAlign then runs in
    # torchvision's Python form, which is slower and takes more memory. Detectron2's SemSegFPNHead,
    # whose loss has no such form on CUDA, and RoIPool, whose backward pass has none, end the
    # training in its first step.
    cfg.SOLVER.DETERMINISTIC = False
    # Update all parameters of the optimizer by one kernel ("fused" in torch.optim).
    cfg.SOLVER.FUSED = False
    # Keep the exponential moving average of the weights and of the statistics of batch norms,
    # average = d * average + (1 - d) * weights after every step, where d is this, e.g. 0.999, but
    # no more than (1 + n) / (10 + n) behind n steps. Evaluations use it, it is written as
    # model_final_ema.pth, and the next of the stages begins with it. 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Steps in a row whose losses or gradients are not finite that are left out, each with a
    # warning, before training fails; on a GPU the host then waits once a step for the gradients. 0:
    # training fails at the first such loss, as in Detectron2; on a GPU behind the next step, or
    # behind at most 20 with several processes, but before a checkpoint or an evaluation.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0
    # SOLVER.LR_SCHEDULER_NAME may also be "WarmupConstantLR", "WarmupPolyLR", "ReduceLROnPlateau".
    # "WarmupPolyLR", as in Detectron2's DeepLab: (1 - iteration / MAX_ITER) ** POWER, the warm-up a
    # factor of it, and behind the warm-up no lower than this part of the rate.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # By shell-style patterns over the names of parameters, which may match what is frozen:
    # [[pattern, factor of the rate], ...], e.g. [["backbone.*", 0.1]], and [[pattern, weight
    # decay], ...]. Where several match, the last one wins.
    cfg.SOLVER.LR_MULTIPLIERS = []
    cfg.SOLVER.WEIGHT_DECAY_OVERRIDES = []
    # Rate times this ** (L + 1 - l) in layer l of the L of a network of timm, or an EoMT, 0 being
    # embeddings or stem; LR_MULTIPLIERS are factors beside it. 1: the same in all layers.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": all gradients as one vector.
    # Learning rate at the end of "WarmupCosineLR" (Detectron2 after 0.6 has this key too).
    cfg.SOLVER.BASE_LR_END = cfg.SOLVER.get("BASE_LR_END", 0.0)
    # Iteration at which the cosine reaches its end, which may lie behind MAX_ITER; 0 for MAX_ITER.
    cfg.SOLVER.COSINE_ITERS = 0
    # "ReduceLROnPlateau" multiplies the learning rate by FACTOR when the total validation loss (see
    # TEST.VAL_LOSS_PERIOD) has not fallen by the part THRESHOLD in more than PATIENCE validations.
    cfg.SOLVER.PLATEAU = CN()
    cfg.SOLVER.PLATEAU.PATIENCE = 3
    cfg.SOLVER.PLATEAU.FACTOR = 0.1
    cfg.SOLVER.PLATEAU.THRESHOLD = 1e-4
    cfg.SOLVER.PLATEAU.MIN_LR = 0.0
    # Lengths in epochs of DATASETS.TRAIN, e.g. 4.0, made iterations, rounded up, when the config is
    # read. Each sets the key of the same name in SOLVER or TEST, unless the command line gives that
    # one; 0 or [] leave it alone.
    cfg.SOLVER.EPOCHS = CN()
    cfg.SOLVER.EPOCHS.MAX_ITER = 0.0
    cfg.SOLVER.EPOCHS.STEPS = []
    cfg.SOLVER.EPOCHS.WARMUP_ITERS = 0.0
    cfg.SOLVER.EPOCHS.COSINE_ITERS = 0.0
    cfg.SOLVER.EPOCHS.CHECKPOINT_PERIOD = 0.0
    cfg.SOLVER.EPOCHS.EVAL_PERIOD = 0.0
    cfg.SOLVER.EPOCHS.VAL_LOSS_PERIOD = 0.0

    # For spinning disks and network mounts: an epoch visits one shard after another, in random
    # order, and shuffles inside each; every image still comes once. False: one shuffle over all.
    cfg.DATALOADER.SHARD_LOCAL = False
    # Fetch the next batch and copy it to the GPU, from pinned memory on a stream of its own, while
    # the model works on this one. Needs NUM_WORKERS above 0; on the CPU workers are ahead as it is.
    cfg.DATALOADER.PREFETCH = False
    # SAMPLER_TRAIN may also be "ClassBalancedTrainingSampler", which draws the part BALANCE of an
    # epoch class by class, and "SmallObjectTrainingSampler", which draws it instance by instance of
    # those below SMALL_AREA px of the stored picture. Epochs stay as long; the factors are logged.
    cfg.DATALOADER.BALANCE = 0.5
    cfg.DATALOADER.SMALL_AREA = 1024
    # Part of the images that "RandomSubsetTrainingSampler" trains on. Detectron2 reads this key too
    # but gives it no default.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0

    # Instances of fewer pixels than this after augmentation are left out of training.
    cfg.INPUT.MIN_INSTANCE_AREA = 0
    # Instances of fewer pixels than SMALL_INSTANCE_AREA after augmentation have this factor in the
    # semantic loss (pixel by pixel) and in that of the mask head (3.0 in Panoptic-DeepLab); boxes
    # and classes of regions have none. 1.0: none at all.
    cfg.INPUT.SMALL_INSTANCE_WEIGHT = 1.0
    cfg.INPUT.SMALL_INSTANCE_AREA = 4096
    # Scale jitter: in training the size of MIN_SIZE_TRAIN and MAX_SIZE_TRAIN times a random factor
    # of RANGE, of which a random CROP_SIZE (height, width) is cut; smaller ones are padded with
    # void. [0.5, 2.0] is usual for Cityscapes, [0.1, 2.0] is large-scale jitter. A crop of which a
    # class has more than SINGLE_CATEGORY_MAX_AREA (of what is not void) is drawn anew, up to ten
    # times; 1.0 takes any. Not with INPUT.CROP.ENABLED or FIXED_SIZE.
    cfg.INPUT.SCALE_JITTER = CN()
    cfg.INPUT.SCALE_JITTER.ENABLED = False
    cfg.INPUT.SCALE_JITTER.RANGE = [0.5, 2.0]
    cfg.INPUT.SCALE_JITTER.CROP_SIZE = [512, 1024]
    cfg.INPUT.SCALE_JITTER.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Random brightness, contrast, saturation and hue in training, each with a chance of one half,
    # in the ranges of SSD.
    cfg.INPUT.COLOR_JITTER = CN()
    cfg.INPUT.COLOR_JITTER.ENABLED = False
    # Copy-paste: the chance that a training image gets THINGS, a part of the instances, and STUFF,
    # a part of the stuff classes, of a second image of DATASETS.TRAIN; stuff behind all things.
    # Instances below 32 x 32 px have SMALL_COPIES chances, the further copies moved sideways.
    cfg.INPUT.COPY_PASTE = CN()
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    cfg.INPUT.COPY_PASTE.THINGS = 0.5
    cfg.INPUT.COPY_PASTE.STUFF = 0.1
    cfg.INPUT.COPY_PASTE.SMALL_COPIES = 2
    # (height, width) that every image is resized to, in training and test, whatever its shape; []
    # for Detectron2's rules of the short edge.
    cfg.INPUT.FIXED_SIZE = []
    # Pad every batch, in training and test, to multiples of this many pixels instead of those that
    # the backbone needs, so that sizes in between become one: MODEL.COMPILE then compiles once for
    # each size that occurs. It is Detectron2's own padding: masks, boxes, semantic losses and
    # predictions end at the image, while convolutions and batch norms see it, and anchors in it are
    # background. A multiple of the backbone's own (32), best one that divides sizes that shall
    # stay; 0: the backbone's.
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    # How images of shards are resized: "torch", or "pil" as Detectron2 does it, which is several
    # times slower; the two differ by up to 2 grey levels in about one value of a hundred. "plain":
    # without antialiasing, as torchvision's detectors and OpenCV do, for weights of theirs.
    cfg.INPUT.RESIZE_BACKEND = "torch"

    # "SeamlessPanoptic", TEST.AUG and SLIDING_WINDOW predict as "sem_seg" (C, H, W) scores, as
    # Detectron2 does; False: (H, W) train ids, sooner and without 160 MB for an image of 1024 x
    # 2048. This package takes either, Detectron2's own evaluators scores only.
    cfg.TEST.SEM_SEG_SCORES = True
    # TEST.AUG is Detectron2's: d2c predict, and a second evaluation with "_TTA" behind its tasks.
    # It resizes what INPUT.MIN_SIZE_TEST gives, so that this is best the pictures' own size.
    # Models of semantics may see windows of SIZE (height, width) pixels of their input, STRIDE
    # apart, whose scores are averaged: in the memory of a window, however large the picture is.
    cfg.TEST.SLIDING_WINDOW = CN()
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    cfg.TEST.SLIDING_WINDOW.SIZE = [1024, 1024]
    cfg.TEST.SLIDING_WINDOW.STRIDE = [768, 768]
    # How many images of each test dataset are drawn, prediction beside truth, during evaluation.
    cfg.TEST.NUM_PICTURES = 0
    # Write predictions in the formats of the benchmark's test server while a model is evaluated, to
    # OUTPUT_DIR/submission/<dataset>/{semantic,instance,panoptic}.
    cfg.TEST.SUBMISSION = False

    # Iterations between two validations during training, which log the training losses on images
    # that are not trained on as val/...; one more follows the last iteration. 0: none.
    cfg.TEST.VAL_LOSS_PERIOD = 0
    # The dataset of these losses; "" for the first of DATASETS.TEST.
    cfg.TEST.VAL_LOSS_DATASET = ""
    # Entries of Detectron2's TEST.EXPECTED_RESULTS may also be [dataset, task, metric, value,
    # tolerance]; without a dataset they hold for each one in DATASETS.TEST.


def plain(value: Any) -> Any:
    """With lists for tuples at any depth, which YAML does not tell apart."""
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a config, as it is or as read from its text."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_of(cfg: CN, key: str) -> Any:
    """The value of a dotted key that there is."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def model_tasks(cfg: CN) -> tuple[str, ...]:
    """What the configured model predicts, in the names of the evaluators.

    Some of "bbox", "segm", "segm_cityscapes", "sem_seg" and "panoptic_seg"; targets and evaluators
    follow it. "segm" and "segm_cityscapes" are the same masks under two protocols.
    """
    if cfg.MODEL.META_ARCHITECTURE == "UniversalSegmentor":
        things = ("bbox", "segm", "segm_cityscapes", "panoptic_seg")
        return (*things, "sem_seg") if cfg.MODEL.UNIVERSAL.INSTANCES else ("sem_seg",)
    masks = ("segm", "segm_cityscapes") if cfg.MODEL.MASK_ON else ()
    instance_tasks = ("bbox", *masks)
    panoptic = ("panoptic_seg",) if cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED else ()
    return {
        "SemanticSegmentor": ("sem_seg",),
        "StagedSegmentor": ("sem_seg",),
        "DeepLabV3Segmentor": ("sem_seg",),
        "RetinaNet": ("bbox",),
        "SeamlessPanoptic": (*instance_tasks, "sem_seg", *panoptic),
    }.get(cfg.MODEL.META_ARCHITECTURE, instance_tasks)
