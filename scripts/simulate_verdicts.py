"""How often the verdict is right when the truth is known: python scripts/simulate_verdicts.py

Pairs of models are made up with true accuracies and a true correlation; the test images are drawn anew for each.
Prints, for each truth, how often the verdict says that the first model is better or worse, and how often the interval
holds the true difference.
"""

from __future__ import annotations

import argparse

import numpy as np

from distillcli.evidence.paired import compare


def drawn(
    generator: np.random.Generator, images: int, control: float, gain: float, disagreement: float
) -> list[object]:
    """The comparison of one pair of models on ``images`` images.

    ``control``: the true accuracy of the second model, ``gain``: how much more the first has, ``disagreement``: the
    share of images that one of them alone gets right.
    """
    only_first, only_second = (disagreement + gain) / 2, (disagreement - gain) / 2
    both = control - only_second
    kinds = generator.choice(4, size=images, p=[both, only_first, only_second, 1 - both - disagreement])
    found = compare((kinds == 0) | (kinds == 1), (kinds == 0) | (kinds == 2))
    return [found.settled and found.difference > 0, found.settled and found.difference < 0, found.low, found.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    print(f"{options.pairs} pairs for each truth, seed {options.seed}")
    print("images  control  gain  disagree  helps  hurts  covered")
    for images in (32, 300, 10_000):
        for control, gain, disagreement in (
            *((0.90, 0.0, 0.02), (0.90, 0.0, 0.10), (0.70, 0.0, 0.25)),
            *((0.90, 0.01, 0.06), (0.85, 0.03, 0.10), (0.70, -0.03, 0.20)),
        ):
            rows = [drawn(generator, images, control, gain, disagreement) for _ in range(options.pairs)]
            helps, hurts, low, high = (np.array(column) for column in zip(*rows, strict=True))
            covered = (low <= 100 * gain) & (100 * gain <= high)
            shares = "  ".join(f"{100 * column.mean():5.1f}" for column in (helps, hurts, covered))
            print(f"{images:6}  {control:7.2f}  {gain:4.2f}  {disagreement:8.2f}  {shares}")


if __name__ == "__main__":
    main()
