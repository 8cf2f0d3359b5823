"""What an adapter does to text that has nothing to do with its memory: losses that keep it as it was.

Leaves out: which rows of a pass are such text (`passes`), and what the losses count (`settings`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from generative_adapter.training.cross_entropy import cross_entropy


def unrelated_text_losses(logits: Tensor, plain: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence from the base model, and by how much a text's own tokens become less likely; differentiable.

    Args:
        logits: under the adapter, `[tokens, words]`.
        plain: of the base model, `[tokens, words]`.
        labels: the text's next tokens, `[tokens]`.

    Returns:
        KL(base || adapted) of each token, and -log P of the text's own token less what it is without the adapter; the
        mean of these is the log of how many times the text's perplexity rises, `[tokens]` each.
    """
    own = F.log_softmax(logits.float(), dim=-1)
    before = F.log_softmax(plain.float(), dim=-1)
    divergence = F.kl_div(own, before, log_target=True, reduction="none").sum(-1)
    return divergence, cross_entropy(logits, labels) - cross_entropy(plain, labels)
