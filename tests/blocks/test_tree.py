"""Trees hold each beginning of their rows once, and attention sees what came before in a row."""

import gc
import random
import weakref

import pytest
import torch

from tl_edit.blocks.tree import forests

CPU = torch.device("cpu")


def some_rows(seed: int, n: int = 40, n_tokens: int = 3, longest: int = 9):
    generator = random.Random(seed)
    return [tuple(generator.choices(range(n_tokens), k=generator.randint(1, longest))) for _ in range(n)]


def nodes_of(forest, rows):
    """By node, the tokens up to it, as the paths tell."""
    found = {}
    for number, path in forest.paths.items():
        assert forest.tokens[path].tolist() == list(rows[number])
        assert forest.layout.positions[path].tolist() == list(range(len(path)))
        for depth, node in enumerate(path):
            assert found.setdefault(node, rows[number][: depth + 1]) == rows[number][: depth + 1]
    assert sorted(found) == list(range(len(forest.tokens)))
    return found


@pytest.mark.parametrize("size", [1, 9, 30, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_there_once(seed, size):
    rows = some_rows(seed)
    found = list(forests(rows, size=size, device=CPU))
    assert sorted(number for forest in found for number in forest.paths) == list(range(len(rows)))
    for forest in found:
        assert len(forest.tokens) <= max(size, 9)
        nodes_of(forest, rows)


def test_forests_are_made_one_by_one_and_may_begin_with_one_that_is_chosen():
    rows, alive, most = some_rows(3), weakref.WeakSet(), 0
    found = []
    for forest in forests(rows, size=9, device=CPU, first=17):
        alive.add(forest)
        gc.collect()
        most = max(most, len(alive))
        found.append(list(forest.paths))
        del forest
    assert len(found) > 5
    assert most == 1
    assert 17 in found[0]
    assert 17 not in next(forests(rows, size=9, device=CPU)).paths, "it would not come first by itself"
    assert sorted(number for paths in found for number in paths) == list(range(len(rows)))


def test_one_tree_holds_each_beginning_once(monkeypatch):
    rows = some_rows(0)
    monkeypatch.setattr("tl_edit.blocks.tree.WIDTH", 10**4)
    (forest,) = forests(rows, size=10**4, device=CPU)
    beginnings = {row[:stop] for row in rows for stop in range(1, len(row) + 1)}
    assert len(forest.tokens) == len(beginnings)
    assert set(nodes_of(forest, rows).values()) == beginnings


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("width", [9, 20, 10**4])
def test_attention_sees_ancestors_within_the_window_and_itself(width, window, monkeypatch):
    monkeypatch.setattr("tl_edit.blocks.tree.WIDTH", width)
    rows = some_rows(1)
    (forest,) = forests(rows, size=10**4, device=CPU)
    layout, nodes = forest.layout, nodes_of(forest, rows)
    seen = layout.seen(0, window)[:, 0]
    assert seen.shape == (layout.rows, layout.width, layout.width)
    assert seen.any(-1).all(), "padding sees something, as attention to nothing is no number"
    own = layout.frame(torch.arange(1, len(nodes) + 1.0, dtype=torch.float64)[:, None, None])[:, 0, :, 0].long() - 1
    for row in range(layout.rows):
        for query, key in torch.cartesian_prod(*[torch.arange(layout.width)] * 2).tolist():
            one, other = int(own[row, query]), int(own[row, key])
            if one < 0:
                assert bool(seen[row, query, key]) == (query == key)
                continue
            before = other >= 0 and nodes[one][: len(nodes[other])] == nodes[other]
            near = window is None or (before and len(nodes[one]) - len(nodes[other]) < window)
            assert bool(seen[row, query, key]) == (before and near)


def test_states_come_back_from_their_frame():
    (forest,) = forests(some_rows(2), size=10**4, device=CPU)
    states = torch.randn(len(forest.tokens), 2, 3)
    assert torch.equal(forest.layout.side_by_side(forest.layout.frame(states)), states.flatten(1))
