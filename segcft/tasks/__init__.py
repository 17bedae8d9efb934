"""The training stages as LightningModules: attributes, judges, pretraining and fine-tuning."""

from segcft.tasks.attributes import TrainAttributes
from segcft.tasks.base import Optimisation, Task
from segcft.tasks.finetune import CounterfactualFineTuning
from segcft.tasks.judges import TrainRegressor, TrainSegmentor
from segcft.tasks.pretrain import PretrainHVAE
from segcft.tasks.sharded_strategy import Sharded

__all__ = [
    "CounterfactualFineTuning",
    "Optimisation",
    "PretrainHVAE",
    "Sharded",
    "Task",
    "TrainAttributes",
    "TrainRegressor",
    "TrainSegmentor",
]
