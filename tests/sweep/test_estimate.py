from types import SimpleNamespace

from cryobench.record import Record
from cryobench.sweep.estimate import Times


def record(solver, operator, seconds, shape=(32, 32), status="ok"):
    fields = {"timing": {"seconds_per_image": seconds}, "problem": {"image_shape": list(shape)}}
    return Record("0", status, "", solver, operator, "none", "demo", 0, ["0"], **fields)


def task(solver, operator, images=10, shape=(32, 32)):
    dataset = SimpleNamespace(shape=shape, ids=[""] * images)
    return SimpleNamespace(cell=SimpleNamespace(labels={"solver": solver, "operator": operator}, dataset=dataset))


def test_estimates_are_medians_of_similar_cells():
    earlier = [record("dct", "a", seconds) for seconds in (1.0, 2.0, 30.0)] + [record("dct", "b", 5.0)]
    earlier += [record("dct", "a", 99.0, shape=(64, 64)), record("dct", "a", 99.0, status="failed")]
    times = Times(earlier)
    assert times.of(task("dct", "a")) == 20.0  # the median, ten images
    assert times.of(task("dct", "c")) == 35.0  # over all operators
    assert times.of(task("dct", "a", shape=(64, 64))) == 990.0
    assert times.of(task("tv", "a")) is None
    assert times.total([task("dct", "a"), task("dct", "b"), task("tv", "a")]) == (70.0, 1)
