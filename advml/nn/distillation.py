"""Knowledge distillation: a student learns the outputs of a teacher (Hinton et al. 2015, "Distilling the knowledge in a
neural network"; Li and Hoiem 2016, "Learning without forgetting", section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from advml.nn.losses import at_least_float32


def distillation(
    student: Tensor, teacher: Tensor, heads: Tensor, temperature: float, student_heads: Tensor | None = None
) -> Tensor:
    """T² KL(p‖q) of each head, averaged over examples: [H], for logits of student and teacher [B, C].

    p = softmax(teacher / T) over the outputs of a head (`heads`, bool [H, C]) and q = softmax(student / T) likewise.
    Outputs that `student_heads` [H, C] adds to a head take part in q, with p = 0.

    Less the entropy of p, which no student changes, this is the cross-entropy −T² Σ p log q of Li and Hoiem's
    equations 2 to 4, times T²: with it the gradient, T (q − p), stays of one size as T grows (Hinton et al., 2.1).
    At the teacher's own outputs both are 0.
    """
    log_p = _log_softmax(teacher, heads, temperature)
    log_q = _log_softmax(student, heads if student_heads is None else student_heads, temperature)
    divergence = (log_p.exp() * (log_p - log_q).masked_fill(~heads, 0.0)).sum(2)
    return temperature**2 * divergence.mean(0)


def _log_softmax(logits: Tensor, heads: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / T) [B, H, C] over each head by itself, −∞ outside of it; in float32 at least."""
    logits = at_least_float32(logits)
    return (logits.unsqueeze(1) / temperature).masked_fill(~heads, -torch.inf).log_softmax(2)
