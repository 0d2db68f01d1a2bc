# The public names and where they live: lazy-loader imports each when it is first used.
from .combine import concat as concat
from .data.sources import open_source as open_source
from .dataset import DistilledDataset as DistilledDataset
from .errors import AtomhubError as AtomhubError
from .hub.load import load as load
from .hub.models import load_model as load_model, push_model as push_model, save_model as save_model
from .job.evaluation import evaluate as evaluate, verify as verify
from .job.forecast import forecast as forecast
from .job.run import distill as distill
from .job.search import search as search
from .job.teachers import label as label
from .recipe import Recipe as Recipe
from .training.classifier import (
    Classifier as Classifier,
    accuracy as accuracy,
    train as train,
    train_classifier as train_classifier,
)
from .training.soft_labels import soften as soften
from .version import __version__ as __version__
