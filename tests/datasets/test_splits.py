import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.datasets.splits import partition

fractions = st.floats(0.01, 0.45)
labels = st.lists(st.integers(0, 4), min_size=1, max_size=300).map(lambda items: np.array(items, np.int64))


@given(labels, fractions, fractions, st.integers(1, 200), st.integers(0, 2**31), st.data())
def test_parts_are_disjoint_and_together_everything(classes, validation, test, calibration, seed, data):
    own_test = data.draw(st.none() | st.integers(0, len(classes)))
    parts = partition(
        classes, len(classes), validation=validation, test=test, calibration=calibration, seed=seed, own_test=own_test
    )
    assert list(parts) == ["train", "calibration", "validation", "test"]
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(len(classes)))
    for part in parts.values():
        assert (np.diff(part) > 0).all()
    if own_test is not None:
        assert parts["test"].tolist() == list(range(own_test, len(classes)))
    assert len(parts["calibration"]) <= calibration
    assert len(parts["calibration"]) <= len(parts["train"]) + 1


@given(labels, fractions, st.integers(0, 2**31))
def test_every_class_gives_its_share_to_less_than_one_sample(classes, test, seed):
    parts = partition(classes, len(classes), validation=0.1, test=test, calibration=1, seed=seed)
    size = len(parts["test"])
    assert size == min(len(classes), max(1, round(test * len(classes))))
    for number, count in zip(*np.unique(classes, return_counts=True), strict=True):
        got = int((classes[parts["test"]] == number).sum())
        assert abs(got - size * count / len(classes)) < 1


@given(labels, st.integers(0, 2**31))
def test_the_test_part_does_not_depend_on_what_is_drawn_after_it(classes, seed):
    one = partition(classes, len(classes), validation=0.1, test=0.2, calibration=5, seed=seed)
    other = partition(classes, len(classes), validation=0.3, test=0.2, calibration=50, seed=seed)
    assert one["test"].tolist() == other["test"].tolist()


def test_a_split_is_the_same_everywhere_and_forever():
    """Whoever changes this hands training samples of shipped weights to the accuracy measurement."""
    parts = partition(np.arange(12) % 3, 12, validation=0.25, test=0.25, calibration=2, seed=7)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "train": [0, 1, 5, 8],
        "calibration": [7, 9],
        "validation": [2, 3, 10],
        "test": [4, 6, 11],
    }


def test_seeds_differ():
    classes = np.zeros(100, np.int64)
    drawn = {
        tuple(partition(classes, 100, validation=0.1, test=0.2, calibration=5, seed=seed)["test"]) for seed in range(5)
    }
    assert len(drawn) == 5


def test_data_without_labels_is_one_stratum():
    parts = partition(None, 50, validation=0.1, test=0.2, calibration=8, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 27,
        "calibration": 8,
        "validation": 5,
        "test": 10,
    }
