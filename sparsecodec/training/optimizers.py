"""The optimiser of a recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecodec.sparsity.rules import is_conv
from sparsecodec.training.muon import Muon
from sparsecodec.training.recipe import Recipe

AUXILIARY = "quantiles"  # of CompressAI's entropy bottlenecks: they follow a loss of their own
AUXILIARY_LR = 1e-3


def is_auxiliary(name: str) -> bool:
    """Whether a parameter is moved by a model's ``aux_loss`` alone, and by nothing else."""
    return name.rpartition(".")[2] == AUXILIARY


def trained_by_gradient(model: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradient is clipped: all but the auxiliary ones."""
    return [parameter for name, parameter in model.named_parameters() if not is_auxiliary(name)]


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """CompressAI's ``aux_loss``, which fits the quantiles of its entropy bottlenecks; None for models without.

    Of a video codec it is that of its intra model.
    """
    owners = [part for part in (model, *model.children()) if hasattr(part, "aux_loss")]
    return owners[0].aux_loss() if owners else None


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """`Muon` or Adam over the parameters of `model`.

    The auxiliary parameters are a group of their own. Their loss touches nothing else and the main loss does not touch
    them, so one optimiser and one backward do what CompressAI's two optimisers do.
    """
    main = [p for p in trained_by_gradient(model) if p.requires_grad]
    matrix_lr = recipe.learning_rate if recipe.optimizer == "muon" else None
    filters = [module.weight for module in model.modules() if is_conv(module)]
    optimizer = Muon(main, filters, matrix_lr, recipe.adam_learning_rate)
    auxiliary = [p for name, p in model.named_parameters() if is_auxiliary(name)]
    if auxiliary:
        optimizer.add_param_group(
            {"params": auxiliary, "lr": AUXILIARY_LR, "peak": AUXILIARY_LR, "betas": (0.9, 0.999), "muon": False}
        )
    return optimizer
