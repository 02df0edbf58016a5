"""Muon (Jordan et al., 2024) for the weight matrices: momentum, orthogonalised."""

from collections import defaultdict

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(stack: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Newton-Schulz iteration on a [matrices, rows, columns] stack with rows <= columns."""
    a, b, c = _COEFFICIENTS
    x = stack / (stack.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by its nearest semi-orthogonal matrix."""

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        num_steps: int = 5,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(matrices, settings)
        self.num_steps = num_steps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Updates every matrix; those of one shape are orthogonalised together."""
        for group in self.param_groups:
            updates: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(
                list
            )
            for matrix in group["params"]:
                state = self.state[matrix]
                velocity = state.setdefault("velocity", torch.zeros_like(matrix))
                velocity.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(velocity, group["momentum"])
                wide = update.mT if update.shape[0] > update.shape[1] else update
                updates[tuple(wide.shape)].append((matrix, wide))
            for pairs in updates.values():
                stack = orthogonalise(torch.stack([wide for _, wide in pairs]), self.num_steps)
                for (matrix, _), wide in zip(pairs, stack, strict=True):
                    rows, columns = matrix.shape
                    update = wide.mT if rows > columns else wide
                    scale = max(1.0, rows / columns) ** 0.5
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-group["lr"] * scale)
