"""python -m fake_cuda: what it finds in a few lines."""

from __future__ import annotations

import torch

from fake_cuda import FakeCuda

__all__ = ["main"]


def main() -> None:
    """A step of training, and four mistakes."""
    with FakeCuda() as gpu:
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).to("cuda")
        scaler = torch.amp.GradScaler("cuda")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        images = torch.rand(2, 3, 16, 16)
        with gpu.watch("a step") as seen:
            with torch.autocast("cuda", dtype=torch.float16):
                features = model(images.pin_memory().to("cuda", non_blocking=True))
            loss = features.float().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            print("loss", loss.item(), features.dtype, features.device)
            features[features > 0.5].sum()
        print(seen.table())
        for mistake in (
            lambda: features + images.new_zeros(2, 8, 14, 14),
            lambda: features.detach().numpy(),
            lambda: torch.ones(2, 2, dtype=torch.int64, device="cuda") @ torch.ones(
                2, 2, dtype=torch.int64, device="cuda"),
            lambda: features.detach().to("cpu", non_blocking=True).tolist(),
        ):  # fmt: skip
            try:
                mistake()
            except (RuntimeError, TypeError) as error:
                print(type(error).__name__, "-", error)
        print("peak", torch.cuda.max_memory_allocated(), "bytes")


if __name__ == "__main__":
    main()
