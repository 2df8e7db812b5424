"""What is known of CUDA's operations: which wait, which do not exist, which take what places."""

from __future__ import annotations

import torch

__all__ = [
    "COPIES",
    "FREE",
    "INDEXING",
    "IN_FLOAT32_ON_CUDA",
    "NO_CUDA_KERNEL",
    "SCALARS_OK",
    "SLOW_IN_HALF",
    "UNSIGNED_KERNELS",
    "VIEWS",
    "WAITS",
    "WIDE_UNSIGNED",
]  # fmt: skip


def _aten(*names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names)


# Operations after which the host waits, whatever their arguments: they need a number or a shape.
WAITS = {
    "aten::_local_scalar_dense": "item",
    "aten::equal": "equal",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::_unique": "unique",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::unique_dim_consecutive": "unique",
    "aten::bincount": "bincount",
    "aten::histc": "histc",
    "aten::multinomial": "multinomial",
    "torchvision::nms": "nms",
}

_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool})
WIDE_UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})

# Operation -> types that it has no CUDA kernel for ("... not implemented for 'Long'").
NO_CUDA_KERNEL = dict.fromkeys(
    _aten(
        "mm", "bmm", "addmm", "baddbmm", "addmv", "dot", "convolution", "mv",
        "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "grid_sampler_2d",
        "_softmax", "_log_softmax", "avg_pool2d", "max_pool2d_with_indices",
        "_adaptive_avg_pool2d", "reflection_pad2d", "native_batch_norm",
    ),
    _INTEGERS,
)  # fmt: skip

# Operations that have CUDA kernels for uint16 and wider unsigned types, beside views.
UNSIGNED_KERNELS = _aten(
    "_to_copy", "copy_", "clone", "fill_", "zero_", "index", "empty", "cat", "eq", "ne",
    "empty_strided", "zeros",
)  # fmt: skip
# Ends of the names of views, which are there for every type.
VIEWS = (
    "view", "reshape", "slice", "select", "unsqueeze", "squeeze", "detach", "alias", "expand",
    "permute", "transpose", "as_strided", "unbind", "split", "unfold", "t",
)  # fmt: skip

COPIES = _aten("copy_", "_to_copy", "_copy_from", "_foreach_copy_")
INDEXING = _aten(
    "index", "index_put_", "_index_put_impl_", "index_put", "_unsafe_index", "_unsafe_index_put"
)
# 0-dim tensors of the CPU are taken as numbers by pointwise operations, and by these too.
SCALARS_OK = _aten(
    "where", "masked_fill", "masked_fill_", "lerp", "lerp_", "index_put_", "index_put", "fill_",
    "clamp", "_amp_foreach_non_finite_check_and_unscale_",
)  # fmt: skip

# No kernel is launched for these: views and the like.
FREE = _aten(
    "view", "_unsafe_view", "reshape", "slice", "select", "unsqueeze", "squeeze", "detach",
    "alias", "expand", "permute", "transpose", "t", "as_strided", "unbind", "split",
    "split_with_sizes", "unfold", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "_local_scalar_dense", "view_as", "lift_fresh",
)  # fmt: skip

# The CPU takes minutes for these in half precision, and rounds their sums; GPUs add in float32.
SLOW_IN_HALF = _aten("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")

# What AutocastCUDA computes in float32 and AutocastCPU does not (torch/csrc, autocast_mode.h).
IN_FLOAT32_ON_CUDA = (
    "softmax.int", "log_softmax.int", "cross_entropy_loss", "exp", "log", "log10", "log1p", "log2",
    "expm1", "reciprocal", "rsqrt", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar",
    "softplus", "nll_loss", "nll_loss_nd", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "kl_div", "layer_norm", "group_norm", "norm.Scalar",
    "norm.ScalarOpt_dim", "cdist", "dist", "renorm", "sum", "sum.dim_IntList", "prod",
    "prod.dim_int", "cumsum", "cumprod", "cosine_similarity",
)  # fmt: skip
