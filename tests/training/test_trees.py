"""Files of trees are whole, hold what was written, and are refused where a bit of it is another."""

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inrfast.errors import MemoryBudgetError
from inrfast.training import trees
from inrfast.training.trees import content_of, digest, pack, read_tree, unpack, write_tree

PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
TENSORS = st.builds(
    lambda seed, shape, dtype: (9 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))).to(dtype),
    st.integers(0, 9),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(
        [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    ),
)
KEYS = st.integers() | st.text("ab.'", max_size=4)
TREES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other and type(one) is type(other)


def rewritten(path: Path, change: Any) -> None:
    """Let another program write a file's tensors and metadata again after a change."""
    with safetensors.safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    safetensors.torch.save_file(tensors, path, metadata)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    tree = {"net": {"weight": torch.rand(3, 4), "count": torch.tensor(7)}, "rest": [1, "two", [torch.rand(5), None]]}
    write_tree(tmp_path / "tree.safetensors", "kind", tree, {"rate": 0.001, "names": ["a"]})
    return tmp_path / "tree.safetensors", tree


@given(tree=TREES)
def test_trees_come_back_as_they_were(tree: Any) -> None:
    tensors: dict[str, Tensor] = {}
    assert same(tree, unpack(json.loads(json.dumps(pack(tree, "", tensors))), tensors))


@given(tree=TREES, about=st.dictionaries(st.text(max_size=3), PLAIN, max_size=3))
def test_other_programs_read_the_same_tensors_and_the_same_tree_gives_the_same_bytes(
    tree: Any, about: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trees") / "tree.safetensors"
    write_tree(path, "kind", {"a": tree}, about)
    assert path.read_bytes() == b"".join(content_of("kind", {"a": tree}, about))
    tensors: dict[str, Tensor] = {}
    pack({"a": tree}, "", tensors)
    theirs = safetensors.torch.load_file(path)
    assert theirs.keys() == tensors.keys()
    assert all(same(theirs[name], tensor) for name, tensor in tensors.items())
    schema, again, said = read_tree(path, ["kind"])
    assert schema == "kind" and same(again, {"a": tree}) and said == json.loads(json.dumps(about))
    rewritten(path, lambda metadata, tensors: None)  # in their order of entries
    assert same(read_tree(path, ["kind"])[1], {"a": tree})


@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6), name=st.text("abc", min_size=1, max_size=9))
def test_tensors_of_a_file_have_aligned_memory_of_their_own(
    sizes: list[int], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As tensors that torch makes do: the sum of a dot product depends on where its vectors begin."""
    path = tmp_path_factory.mktemp("aligned") / "tree.safetensors"
    write_tree(path, "kind", {name: [torch.rand(size) for size in sizes]}, {})
    tensors = read_tree(path, ["kind"])[1][name]
    assert all(tensor.data_ptr() % 64 == torch.empty(tensor.shape).data_ptr() % 64 == 0 for tensor in tensors)
    assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in tensors)


def nested(depth: int) -> Any:
    tree: Any = {}
    for _ in range(depth):
        tree = {"a": [tree]}
    return tree


def test_what_a_file_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match=r"got function at a\.1"):
        pack({"a": [1, same]}, "", {})
    with pytest.raises(TypeError, match="plain keys, got tuple at a"):
        pack({"a": {(1, 2): 3}}, "", {})
    for strange in (torch.zeros(2, dtype=torch.complex128), torch.eye(2).to_sparse()):
        with pytest.raises(TypeError, match=rf"{strange.dtype}, .* at a"):
            pack({"a": strange}, "", {})
    with pytest.raises(ValueError, match="up to 64 dicts and lists inside each other"):
        pack(nested(40), "", {})


def test_a_mutated_file_is_refused_or_holds_the_same(saved: tuple[Path, dict[str, Any]]) -> None:
    """Whatever happens to its bytes: flipped bits, cuts, copies, other bytes, wherever they are."""
    path, tree = saved
    content, draw = path.read_bytes(), random.Random(5)
    changes = []
    for at in range(0, len(content), 2):
        changes.append(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
    for _ in range(500):
        begin, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        middle = draw.choice([b"", draw.randbytes(end - begin), content[begin:end] * 2, bytes(draw.randrange(1, 40))])
        changes.append(content[:begin] + middle + content[end:])
    refused = []
    for changed in changes:
        path.write_bytes(changed)
        try:
            _, again, about = read_tree(path, ["kind"])
        except ValueError as error:
            refused.append(str(error))
        else:
            assert same(again, tree) and about == {"rate": 0.001, "names": ["a"]}
    assert len(refused) > 0.9 * len(changes)
    assert all("tree.safetensors" in words and "\n" not in words for words in refused)


@given(data=st.data())
def test_one_number_changed_by_another_program_is_noticed(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("numbers") / "tree.safetensors"
    tree = data.draw(st.dictionaries(st.text("ab", min_size=1), TENSORS, min_size=1, max_size=3))
    write_tree(path, "kind", tree, {"rate": 0.001})

    def change(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        numbers = [name for name, tensor in tensors.items() if tensor.numel()]
        name = data.draw(st.sampled_from([*numbers, "about", "name"]))
        if name == "about":
            metadata["about"] = metadata["about"].replace("0.001", "0.002")
        elif name == "name":
            tensors["other"] = tensors.pop(next(iter(tensors)))
        else:
            numbers = tensors[name].view(-1).view(torch.uint8)
            numbers[data.draw(st.integers(0, len(numbers) - 1))] ^= 1

    rewritten(path, change)
    with pytest.raises(ValueError, match=r"tree\.safetensors is damaged: .*hash"):
        read_tree(path, ["kind"])


def test_files_of_old_have_no_hash(saved: tuple[Path, dict[str, Any]]) -> None:
    path, tree = saved
    rewritten(path, lambda metadata, tensors: metadata.pop("sha256"))
    assert same(read_tree(path, ["kind"])[1], tree)


@pytest.mark.parametrize(
    "tree",
    [
        "[" * 100_000 + "]" * 100_000,
        json.dumps(nested(400)),
        '{"dict": [[[], 1]]}',
        '{"dict": [["a", 1], ["a", 2]]}',
        '{"dict": [["a", {"tensor of this place": "b"}], ["b", {"tensor of this place": "a"}]]}',
        '{"dict": [["a", {"tensor of this place": "a"}], ["b", {"tensor of this place": "a"}]]}',
        '{"dict": [["a", {"tensor of this place": "a"}]]}',
        '{"list": []}',
        "1" * 5000,
        "{",
    ],
    ids=lambda tree: str(tree)[:20],
)
def test_a_description_that_is_none_is_refused_whatever_its_hash(tree: str, tmp_path: Path) -> None:
    path = tmp_path / "tree.safetensors"
    write_tree(path, "kind", {"a": torch.ones(2), "b": torch.zeros(2)}, {})

    def change(metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
        metadata["tree"] = tree
        metadata["sha256"] = digest(metadata, tensors)

    rewritten(path, change)
    with pytest.raises(ValueError, match=r"tree\.safetensors is damaged: ") as caught:
        read_tree(path, ["kind"])
    assert len(str(caught.value)) < 400


def test_a_file_larger_than_memory_is_not_read(saved: tuple[Path, dict[str, Any]], monkeypatch: Any) -> None:
    monkeypatch.setattr(trees, "available_bytes", lambda: 3 * saved[0].stat().st_size - 1)
    with pytest.raises(MemoryBudgetError, match=r"reading .*tree\.safetensors needs"):
        read_tree(saved[0], ["kind"])


def test_a_header_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    for stated in (2**63, 2**40, 100):
        (tmp_path / "tree").write_bytes(stated.to_bytes(8, "little") + b'{"__metadata__": {}}')
        with pytest.raises(ValueError, match="is empty, truncated or no safetensors file"):
            read_tree(tmp_path / "tree", ["kind"])


def test_a_file_that_is_replaced_while_it_is_read_is_one_or_the_other(tmp_path: Path) -> None:
    """By its name, as this library does it; in place, as a copy does it, it may be neither, and is then refused."""
    path, other, ended = tmp_path / "tree", tmp_path / "other", threading.Event()
    contents = [
        b"".join(content_of("kind", {"a": [torch.full((n,), float(k)) for n in (5, 3000)]}, {"k": k})) for k in range(4)
    ]
    path.write_bytes(contents[0])

    def write() -> None:
        draw = random.Random(1)
        while not ended.is_set():
            if draw.random() < 0.9:
                other.write_bytes(draw.choice(contents))
                os.replace(other, path)
            else:
                with open(path, "r+b") as file:
                    file.write(draw.choice(contents))

    writer = threading.Thread(target=write)
    writer.start()
    whole, refused = 0, []
    try:
        for _ in range(400):
            try:
                _, tree, about = read_tree(path, ["kind"])
            except ValueError as error:
                refused.append(str(error))
                continue
            whole += 1
            assert all(bool((tensor == about["k"]).all()) for tensor in tree["a"])
    finally:
        ended.set()
        writer.join()
    assert whole > 40
    assert all(str(path) in words for words in refused)
