from tl_edit.counted import counted


def test_one_is_not_several():
    assert [counted(n, "fact") for n in (0, 1, 2, 2000)] == ["0 facts", "1 fact", "2 facts", "2,000 facts"]
    assert [counted(n, "memory", "memories") for n in (1, 3)] == ["1 memory", "3 memories"]
