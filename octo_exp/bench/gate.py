"""What a benchmark checks before it prints: the subjects compute the same step, within what their types allow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octo_exp.base.errors import FailedError
from octo_exp.bench.subjects import Subject

# Least cosine between a subject's gradients and those of fp32, over all parameters both have. Rounding flips ReLUs, and
# on untrained nets with norms that alone turns the gradient (bf16 to .94, int8 to .75): this finds a wrong net, a lost
# term; that int8 is computed right, to the bit, is the twin run's to say.
_LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.9, "other": 0.6}


def gradients(subject: Subject) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradients by parameter name; the weights stay as they are."""
    subject.optimizer.zero_grad()
    # Dropout draws the same for everyone.
    torch.manual_seed(0)
    loss = subject.loss()
    loss.backward()
    found = {name: p.grad.detach().clone() for name, p in subject.net.named_parameters() if p.grad is not None}
    subject.optimizer.zero_grad()
    return loss.detach(), found


def check_same_step(subjects: Sequence[Subject]) -> None:
    """Raise UserError where a subject's loss or gradients are not those of the first, which is fp32."""
    loss, reference = gradients(subjects[0])
    for subject in subjects[1:]:
        kind = next((kind for kind in ("fp32", "bf16") if subject.name.startswith(kind)), "other")
        other_loss, found = gradients(subject)
        names = [name for name in reference if name in found]
        ours, theirs = (torch.cat([g[name].flatten().double() for name in names]) for g in (found, reference))
        cosine = float(torch.dot(ours, theirs) / (ours.norm() * theirs.norm()))
        length = float(ours.norm() / theirs.norm())
        if cosine < _LEAST_COSINE[kind] or not 0.8 < length < 1.25 or abs(float(other_loss - loss)) > 0.1 * float(loss):
            raise FailedError(
                f"{subject.name} does not compute the step of fp32 (loss {float(other_loss):.4f} against "
                f"{float(loss):.4f}, gradients: cosine {cosine:.4f}, length {length:.3f}): nothing is printed"
            )
