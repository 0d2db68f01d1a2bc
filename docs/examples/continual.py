"""Class-incremental learning with a distilled set as the memory: classes come in steps, old images are gone.

    python docs/examples/continual.py digits-ipc10 --steps 5
    python docs/examples/continual.py user/cifar100-ipc20 --steps 10 --protocol dm --runs 5

At every step the memory grows by the distilled images of the new classes, and new networks are trained on the memory
alone (GDumb, ECCV 2020; DM, WACV 2023, figure 4), then tested on the real test images of all classes so far. Beside it:
as many random real images of the same classes, and those nearest the class means (herding).
"""

import argparse

import numpy as np

import atomhub


def main() -> None:
    """Print a line of accuracies for every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a distilled set: its images of a class are the memory of that class")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ipc", type=int, help="images per class to keep; all that the set has unless given")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the classes, and of the networks")
    o = parser.parse_args()
    distilled = atomhub.load(o.name)
    if not 1 <= o.steps <= len(distilled.class_names):
        parser.error(f"--steps cannot be {o.steps}: the set has {len(distilled.class_names)} classes.")
    order = np.random.default_rng(o.seed).permutation(len(distilled.class_names))
    memory, title = None, ["classes", "distilled", "random", "herding"]
    for new in np.array_split(order, o.steps):
        arrived = distilled.subset(classes=[int(k) for k in new], ipc=o.ipc)
        memory = arrived if memory is None else atomhub.concat([memory, arrived])
        baseline = ("random", "herding")
        found = atomhub.evaluate(memory, protocol=o.protocol, runs=o.runs, baseline=baseline, seed=o.seed)
        if title:
            print(f"{o.name}: test accuracy in %, {o.protocol}, {found.network}, mean ± std of {o.runs} networks")
            print("".join(f"{word:>15}" for word in title))
            title = None
        scores = [found.score, *(found.baseline[kind] for kind in baseline)]
        figures = [f"{score.mean:.1f} ± {score.std:.1f}" for score in scores]
        print("".join(f"{word:>15}" for word in (len(memory.class_names), *figures)), flush=True)


if __name__ == "__main__":
    main()
