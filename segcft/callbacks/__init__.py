"""Lightning callbacks: checkpoints and resuming, EMA, training health, progress, images and TensorBoard."""

from segcft.callbacks.ema import EMA
from segcft.callbacks.judge_overfitting import GuideGap

__all__ = ["EMA", "GuideGap"]
