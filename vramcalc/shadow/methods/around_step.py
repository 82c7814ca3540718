"""What a method does around a step: to the loss before the backward pass, and when the optimizer is done."""

from __future__ import annotations

from vramcalc.shadow.engine.tape import Tensor


class AroundStep:
    """Nothing, unless overridden."""

    def add_to_loss(self, loss: Tensor) -> Tensor:
        """The model's loss with what the method adds to it."""
        return loss

    def prepare(self) -> None:
        """Make what is kept between steps, as if a step had been taken."""

    def step(self) -> None:
        """What follows the optimizer's step, gradients still there."""
