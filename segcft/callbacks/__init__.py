"""What happens around training: health, progress, checkpoints, pictures and TensorBoard."""

from segcft.callbacks.ema import EMA
from segcft.callbacks.judge_overfitting import GuideGap

__all__ = ["EMA", "GuideGap"]
