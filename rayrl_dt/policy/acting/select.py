"""Which plan acts for a model."""

from __future__ import annotations

from rayrl_dt.models.decision_transformer import TransformerTrunk
from rayrl_dt.models.decoupled import DecoupledTrunk
from rayrl_dt.models.radt import RADTTrunk
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.decision_transformer import TransformerPlan
from rayrl_dt.policy.acting.decoupled import DecoupledPlan
from rayrl_dt.policy.acting.guided import GuidedPlan
from rayrl_dt.policy.acting.images import KeptImagesPlan, image_embedding
from rayrl_dt.policy.acting.plan import ActingPlan, CachedPlan, WholeWindowPlan
from rayrl_dt.policy.acting.predicted import PredictedReturnPlan
from rayrl_dt.policy.acting.radt import RADTPlan
from rayrl_dt.policy.acting.watch import can_be_watched
from rayrl_dt.policy.context import ContextBuffer

__all__ = ["acting_plan"]

_PLANS: dict[type, type[TransformerPlan] | type[RADTPlan]] = {
    TransformerTrunk: TransformerPlan,
    DecoupledTrunk: DecoupledPlan,
    RADTTrunk: RADTPlan,
}


def acting_plan(
    model: SequenceModel, context: ContextBuffer, precision: str, *, guidance: float = 1.0, keeps: bool = True
) -> ActingPlan:
    """Return the quickest plan for a model, to be used until it no longer `holds`.

    Args:
        model: the policy network.
        context: the windows that it acts on.
        precision: "fp32" or "bf16".
        guidance: how strongly it follows its return; other than 1 only with return dropout.
        keeps: the windows slide from call to call, so that what was computed of a step can be kept; False for a plan
            that is cheap to make, and asks the model about whole windows.
    """
    plan = _plan(model, context, precision, keeps)
    return plan if guidance == 1 else GuidedPlan(plan, model, context, precision, guidance)


def _plan(model: SequenceModel, context: ContextBuffer, precision: str, keeps: bool) -> ActingPlan:
    if model.spec.model.target_rule == "predicted":
        return PredictedReturnPlan(model, context, precision)
    if not keeps:
        return WholeWindowPlan(model, context, precision, lambda: True)
    if can_be_watched(model) and image_embedding(model.trunk) is not None:
        return KeptImagesPlan(model, context, precision)
    if not _can_be_cached(model):
        return WholeWindowPlan(model, context, precision, lambda: not _can_be_cached(model))
    plan: CachedPlan = _PLANS[type(model.trunk)](model, context, precision)
    return plan


def _can_be_cached(model: SequenceModel) -> bool:
    """Return whether there is a plan for the model's trunk, not a user's own variety, and without hooks."""
    keeps = type(model) is SequenceModel and type(model.trunk) in _PLANS
    # Positions of the window change with it.
    return keeps and model.spec.model.embeddings != "atari" and can_be_watched(model)
