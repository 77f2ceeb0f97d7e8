"""What embeddings are worth: how well labels are read from them by two simple classifiers."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from distillcli.models.backbone import Backbone
from distillcli.sources.draws import permutation
from distillcli.types import Taps
from distillcli.views.loader import Data, Loader

NEIGHBOURS = 20
MOST_IMAGES = 20_000  # training images both classifiers learn from: their time grows with them


def probe(backbone: Backbone, data: Data) -> dict[str, float]:
    """Top-1 in percent on the evaluated split, from embeddings of plain views, by classifiers of the training labels.

    ``knn_top1``: 20 nearest neighbours by cosine, weighted by 1 / distance. ``probe_top1``: logistic regression on
    standardised embeddings. Both by scikit-learn, in this process alone; unlabelled images are left out.
    """
    # Few runs ask for a probe, and scikit-learn takes a second to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = data.train.labelled()
    chosen = train.shown[permutation(0, 0, len(train.shown))[:MOST_IMAGES]]
    learned, labels = embeddings(backbone, dataclasses.replace(train, only=chosen))
    queries, truth = embeddings(backbone, data.evaluation.labelled())
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), metric="cosine", weights="distance")
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is not finished by then is as good as finished
        linear.fit(learned, labels)
    neighbours.fit(learned, labels)
    return {"knn_top1": 100 * neighbours.score(queries, truth), "probe_top1": 100 * linear.score(queries, truth)}


@torch.no_grad()
def embeddings(backbone: Backbone, loader: Loader) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """N x D embeddings of plain views in fp32, and N labels, of all images that ``loader`` shows over all ranks."""
    whole = dataclasses.replace(loader, runtime=dataclasses.replace(loader.runtime, rank=0, world=1))
    was_training = backbone.training
    backbone.eval()
    rows, labels = [], []
    for batch in whole.plain():
        embedding = backbone(batch.images, Taps(embedding=True)).embedding
        rows.append(embedding.float().cpu().numpy())
        labels.append(batch.targets.cpu().numpy())
    backbone.train(was_training)
    return np.concatenate(rows), np.concatenate(labels)
