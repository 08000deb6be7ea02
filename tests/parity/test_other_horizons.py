# SPDX-License-Identifier: Apache-2.0
"""Sampler files of other data and horizons; their references come from the rules once more in numpy.

The rules below, row by row, are checked against the recorded sampler first.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from qam_train.parity import compare
from qam_train.parity.recording import PRECISIONS

HERE = Path(__file__).parent
FIELDS = (
    "observations", "actions", "rewards", "masks", "terminals", "next_observations",
)  # fmt: skip


def made_up_rows(lengths, observation, action, rng):
    """Rows of episodes of the given lengths; no next observation is the next row's."""
    n = sum(lengths)
    terminals = np.zeros(n)
    terminals[np.cumsum(lengths) - 1] = 1.0
    rows = {
        "observations": rng.standard_normal((n, observation)),
        "actions": rng.uniform(-1, 1, (n, action)),
        "rewards": -rng.random(n),
        "masks": (rng.random(n) > 0.15).astype(float),
        "terminals": terminals,
        "next_observations": rng.standard_normal((n, observation)),
    }
    return {name: value.astype(np.float32) for name, value in rows.items()}


def chunk(rows, start, h, discount):
    """One chunk of the official sampler."""
    total, mask, ended, last = 0.0, 1.0, 0.0, start
    found = {name: [] for name in (*FIELDS[1:], "valid")}
    for i in range(h):
        row, valid = start + i, 1.0 - ended
        if valid:
            total += float(np.float32(rows["rewards"][row] * discount**i))
            last = row
        mask = min(mask, float(rows["masks"][row]))
        ended = max(ended, float(rows["terminals"][row]))
        values = (rows["actions"][row], total, mask, ended)
        values += (rows["next_observations"][last], valid)
        for steps, value in zip(found.values(), values, strict=True):
            steps.append(value)
    return {"observations": rows["observations"][start]} | found


def chunks(rows, n, h, discount):
    """All legal starts among the first n rows, stacked."""
    start = np.arange(n - h + 1)
    every = [chunk(rows, s, h, discount) for s in start]
    return {"start": start} | {k: np.array([c[k] for c in every]) for k in every[0]}


def segments(rows, h):
    """RQL: every row but the last of each episode; time first, the last row repeated."""
    ends = np.flatnonzero(rows["terminals"])
    firsts = [0, *(ends[:-1] + 1)]
    drawn = [
        (episode, start, [min(start + i, end) for i in range(h + 1)])
        for episode, (first, end) in enumerate(zip(firsts, ends, strict=True))
        for start in range(first, end)
    ]
    episode, start, index = (np.array(column) for column in zip(*drawn, strict=True))
    window = {name: rows[name][index.T] for name in FIELDS[:-1]}
    return {"episode": episode, "start": start} | window


def ring(rows, added, capacity):
    """Store, sizes and pointers: the pointer wraps, the size never reaches the capacity then."""
    n = len(rows["rewards"])
    store = {k: np.zeros((capacity, *v.shape[1:]), v.dtype) for k, v in rows.items()}
    for name in store:
        store[name][:n] = rows[name]
    size = pointer = n
    sizes, pointers = [size], [pointer]
    for i in range(len(added["rewards"])):
        for name in store:
            store[name][pointer] = added[name][i]
        pointer = (pointer + 1) % capacity
        size = max(pointer, size)
        sizes.append(size)
        pointers.append(pointer)
    return store, np.array(sizes), np.array(pointers)


def recording(rows, added, capacity, horizons, of_ring, discount):
    """Everything of a sampler file, by its official names."""
    meta = {"discount": discount, "horizons": horizons}
    arrays = {"meta": np.array(json.dumps(meta)), "replay/capacity": np.array(capacity)}
    store, sizes, pointers = ring(rows, added, capacity)
    groups = {"data": rows, "replay/added": added, "replay/buffer_after": store}
    groups["replay"] = {"size": sizes, "pointer": pointers}
    for h in horizons:
        groups[f"h{h}"] = chunks(rows, len(rows["rewards"]), h, discount)
        groups[f"rql/h{h}"] = segments(rows, h)
    groups[f"replay/h{of_ring}"] = chunks(store, sizes[-1], of_ring, discount)
    for prefix, values in groups.items():
        arrays |= {f"{prefix}/{name}": value for name, value in values.items()}
    return arrays


def official_arrays():
    with np.load(HERE / "sample_sequence.npz") as archive:
        return dict(archive)


def beyond(path):
    return [row.quantity for row in compare(path, "float64") if not row.passed]


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


def test_rules_written_in_numpy_are_those_of_the_recorded_sampler():
    official = official_arrays()
    rows = {name: official[f"data/{name}"] for name in FIELDS}
    added = {name: official[f"replay/added/{name}"] for name in FIELDS}
    ours = recording(rows, added, 64, [1, 3, 5], 3, 0.99)
    assert ours.keys() == official.keys()
    for name in ours.keys() - {"meta"}:
        rounded = 1e-9 if name.endswith("rewards") else 0.0
        np.testing.assert_allclose(ours[name], official[name], rtol=0, atol=rounded)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("lengths", "capacity", "horizons", "of_ring", "discount"),
    [
        ((9, 2, 21, 14), 50, [3, 5], 2, 0.995),
        ((30, 1, 17, 4, 8), 61, [2, 7, 12], 9, 0.9),
        ((26,), 27, [4], 4, 1.0),
        ((90,), 99, [60], 40, 1.0),
    ],
)
def test_sampler_of_other_data_and_horizons_is_compared(
    tmp_path, lengths, capacity, horizons, of_ring, discount, precision
):
    rng = np.random.default_rng(sum(lengths))
    rows, added = made_up_rows(lengths, 4, 3, rng), made_up_rows((3, 4), 4, 3, rng)
    arrays = recording(rows, added, capacity, horizons, of_ring, discount)
    found = compare(saved(tmp_path / "samples.npz", arrays), precision)
    quantities = {row.quantity.split(": ")[1] for row in found}
    expected = {f"{kind}h{h}" for h in horizons for kind in ("", "rql/")}
    assert quantities == expected | {"replay", f"replay/h{of_ring}"}
    assert not [row for row in found if not row.passed]


def test_slip_in_a_sampler_of_other_horizons_is_seen(tmp_path):
    arrays = official_arrays()
    arrays = {k: v for k, v in arrays.items() if not k.startswith("h1/")}
    arrays["meta"] = np.array(json.dumps({"discount": 0.99, "horizons": [3, 5]}))
    assert beyond(saved(tmp_path / "a.npz", arrays)) == []
    arrays["h5/masks"] = 1.0 - arrays["h5/masks"]
    assert beyond(saved(tmp_path / "a.npz", arrays)) == ["other fields: h5"]
