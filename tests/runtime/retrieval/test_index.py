"""The index: search as NumPy has it, its file, and what is refused."""

import io
import json
import logging
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import krl_runtime
from _helpers.bundles import TinyNet
from _helpers.embeddings import COLORS, SIZE, colored, embed, write_embedder, write_folder
from krl_runtime import BundleError, DataError, Embedder, Index, UsageError, load
from krl_runtime.files import dump_digested
from krl_runtime.retrieval import files, graph
from krl_runtime.retrieval.files import index_path, model_identity


@pytest.fixture
def model(tmp_path: Path) -> Embedder:
    return load(write_embedder(tmp_path / "tiny.krl").path, Embedder, threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data")
    return tmp_path / "data"


def by_numpy(model: Embedder, folder: Path, names: list[str]) -> np.ndarray:
    pixels = np.stack([np.asarray(Image.open(folder / name)).transpose(2, 0, 1) for name in names])
    return embed(TinyNet.random(model.preprocessing, SIZE), pixels)


def test_a_folder_becomes_a_file_that_finds_its_images(model: Embedder, folder: Path, tmp_path: Path):
    made = krl_runtime.index(model, folder)
    assert made.path == tmp_path / "tiny.krl.index" == index_path(model.bundle.path)
    names = [f"{name}/{number}.png" for name in sorted(COLORS) for number in range(4)]
    opened = Index.open(made.path, model)
    assert list(opened.names) == names
    assert list(opened.labels) == [name.partition("/")[0] for name in names]
    vectors = by_numpy(model, folder, names)
    np.testing.assert_allclose(opened.vectors, vectors, atol=1e-6)
    results = opened.search(vectors, top_k=3)
    near = vectors @ vectors.T
    for row, result in zip(near, results, strict=True):
        assert [item.name for item in result.neighbors] == [names[index] for index in np.argsort(-row)[:3]]
        assert [item.similarity for item in result.neighbors] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-6)
        assert result.known
    assert [result.label for result in results] == list(opened.labels)
    assert [result.neighbors[0].name for result in results] == names
    np.testing.assert_array_equal(opened.vectors, made.vectors)
    assert opened.to_dict() == made.to_dict()
    assert opened.to_dict()["made_by"]["backend"] == "onnxruntime-cpu"


def test_a_bundle_by_its_path_and_embeddings_as_queries(model: Embedder, folder: Path, tmp_path: Path):
    made = krl_runtime.index(model.bundle.path, folder, out=tmp_path / "own.index")
    assert made.path == tmp_path / "own.index"
    query = model(folder / "red" / "0.png")
    (one,) = made.search(query, top_k=100)
    assert len(one.neighbors) == 12
    assert one.prediction == "red"
    assert one.similarity == pytest.approx(1, abs=1e-6)
    assert made.search([query, query], top_k=1)[1].neighbors == one.neighbors[:1]
    assert json.loads(json.dumps(one.to_dict()))["neighbors"][0]["name"] == "red/0.png"


def test_the_label_is_the_nearest_ones_and_the_majority_counts(model: Embedder):
    axes = np.eye(SIZE, dtype=np.float32)
    vectors = [axes[0], axes[0] + 0.2 * axes[1], axes[0] + 0.3 * axes[1], axes[2]]
    made = Index.of(model, np.array(vectors), ["a", "b", "c", "d"], ["x", "y", "y", "z"])
    (found,) = made.search(axes[:1], top_k=3)
    assert (found.label, found.majority) == ("x", "y")
    (tie,) = made.search(axes[:1], top_k=2)
    assert (tie.label, tie.majority) == ("x", "x")
    assert str(found) == "x 1.000"
    unlabeled = Index.of(model, np.array(vectors), ["a", "b", "c", "d"])
    assert unlabeled.search(axes[:1])[0].prediction == "a"


def test_lists_and_flat_folders_and_bad_images(model: Embedder, folder: Path, tmp_path: Path):
    (tmp_path / "list.csv").write_text("image,label\ndata/red/1.png,rose\ndata/blue/0.png,sky\n")
    made = krl_runtime.index(model, tmp_path / "list.csv")
    assert (made.names, made.labels) == (("data/red/1.png", "data/blue/0.png"), ("rose", "sky"))
    flat = krl_runtime.index(model, folder / "red", overwrite=True)
    assert (flat.names[0], set(flat.labels)) == ("0.png", {""})
    (folder / "red" / "x.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"x\.png"):
        krl_runtime.index(model, folder, overwrite=True)
    assert len(krl_runtime.index(model, folder, overwrite=True, on_bad_image="skip")) == 12


def test_adding_refuses_names_that_are_there_and_replaces_them_when_told(model: Embedder, folder: Path):
    made = krl_runtime.index(model, folder)
    with pytest.raises(UsageError, match=r"tiny\.krl\.index exists already; give --add, or --overwrite to replace it"):
        krl_runtime.index(model, folder)
    with pytest.raises(UsageError, match=r"blue/0\.png and 11 more of the given names are in the index already"):
        krl_runtime.index(model, folder, add=True)
    more = folder.parent / "more"
    write_folder(more, {"violet": (150, 0, 200)}, seed=9)
    added = krl_runtime.index(model, more, add=True)
    assert added.names == (*made.names, *(f"violet/{number}.png" for number in range(4)))
    changed = colored(1, (1, 2, 3))[0]
    Image.fromarray(changed).save(folder / "red" / "2.png")
    replaced = krl_runtime.index(model, folder, add=True, overwrite=True)
    assert sorted(replaced.names) == sorted(added.names)
    position = replaced.names.index("red/2.png")
    np.testing.assert_allclose(replaced.vectors[position], by_numpy(model, folder, ["red/2.png"])[0], atol=1e-6)
    assert Index.open(made.path).names == replaced.names
    with pytest.raises(DataError, match=r"none\.index does not exist; make it with: krl-runtime index"):
        krl_runtime.index(model, folder, add=True, out=folder / "none.index")


def test_none_of_these_refuses_the_share_by_leave_one_out(model: Embedder, tmp_path: Path):
    write_folder(tmp_path / "many", count=20)
    write_folder(tmp_path / "others", {"white": (250, 250, 250), "black": (5, 5, 5)}, count=10, seed=50)
    made = krl_runtime.index(model, tmp_path / "many", none_of_these=0.1, others=tmp_path / "others")
    near = made.vectors.astype(float) @ made.vectors.T
    np.fill_diagonal(near, -2)
    known = near.max(axis=1)
    assert (known < made.least_similarity).sum() == 6
    assert made.calibration["refused"] == pytest.approx(0.1)
    opened = Index.open(made.path, model)
    names = [f"{label}/{number}.png" for label in ("black", "white") for number in range(10)]
    others = by_numpy(model, tmp_path / "others", names)
    scores = (others @ made.vectors.T).max(axis=1)
    results = opened.search(others)
    assert [result.known for result in results] == (scores >= made.least_similarity).tolist()
    found = opened.calibration["others"]
    assert found["false_positive_rate"] == pytest.approx((scores >= made.least_similarity).mean())
    assert found["auroc"] == pytest.approx((known[:, None] > scores).mean(), abs=1e-6)
    assert [r.prediction for r in results if not r.known][:1] == ["none of these"]
    assert all(result.known for result in opened.search(others, least_similarity=-1))
    assert not any(result.known for result in opened.search(others, least_similarity=1.1))


def test_none_of_these_by_validation_images(model: Embedder, folder: Path, tmp_path: Path):
    write_folder(tmp_path / "val", count=10, seed=70)
    made = krl_runtime.index(model, folder, none_of_these=0.2, validation=tmp_path / "val")
    names = [f"{label}/{number}.png" for label in sorted(COLORS) for number in range(10)]
    scores = (by_numpy(model, tmp_path / "val", names) @ made.vectors.T).max(axis=1)
    assert (scores < made.least_similarity).sum() == 6
    assert (made.calibration["source"], made.calibration["images"]) == ("val", 30)
    write_folder(tmp_path / "new", {"pink": (250, 150, 150)})
    with pytest.raises(DataError, match="has classes that the index does not: pink"):
        krl_runtime.index(model, folder, overwrite=True, none_of_these=0.2, validation=tmp_path / "new")
    with pytest.raises(DataError, match="has classes of the index: blue, green, red"):
        krl_runtime.index(model, folder, overwrite=True, none_of_these=0.2, others=tmp_path / "val")


def test_a_share_that_cannot_be_calibrated(model: Embedder, folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"--none-of-these 0\.05 of 12 known images is less than one image; give"):
        krl_runtime.index(model, folder, none_of_these=0.05)
    with pytest.raises(UsageError, match="accepted: a share above 0 and below 1"):
        krl_runtime.index(model, folder, none_of_these=1.0)
    with pytest.raises(UsageError, match="give none_of_these too"):
        krl_runtime.index(model, folder, others=folder)
    write_folder(tmp_path / "single", count=1)
    with pytest.raises(DataError, match="no two images of the index have one label"):
        krl_runtime.index(model, tmp_path / "single", none_of_these=0.5)
    assert not index_path(model.bundle.path).exists()


def test_variants_of_one_model_share_an_index_and_other_models_do_not(tmp_path: Path, folder: Path):
    weights = {"source": {"weights_sha256": "ab" * 32}}
    one = write_embedder(tmp_path / "one.krl", variants=("fp32", "fp16"), **weights)
    renamed = write_embedder(tmp_path / "two.krl", variants=("fp32", "int8"), **weights)
    assert model_identity(one) == model_identity(renamed)
    other = write_embedder(tmp_path / "other.krl", seed=3)
    assert model_identity(other) != model_identity(write_embedder(tmp_path / "same.krl"))
    path = krl_runtime.index(one.path, folder).path
    assert len(Index.open(path, renamed)) == 12
    with pytest.raises(BundleError, match=r"was made with another model \(one\) than .*other\.krl"):
        Index.open(path, other)
    with pytest.raises(BundleError, match=r"make it again with: krl-runtime index .*other\.krl FOLDER --overwrite"):
        krl_runtime.index(other.path, folder, out=path, add=True)


@pytest.mark.parametrize(
    ("vectors", "names", "labels", "cause"),
    [
        (np.ones((2, 5)), ["a", "b"], None, r"shape \[2, 5\]; accepted: \[number, 6\]"),
        (np.ones((2, 6)), ["a"], None, "2 vectors, 1 names and 2 labels"),
        (np.ones((2, 6)), ["a", "b"], ["x"], "2 vectors, 2 names and 1 labels"),
        (np.ones((2, 6)), ["a", "a"], None, "the name 'a' is given twice"),
        (np.ones((1, 6)), ["a\0b"], None, "no file's"),
        (np.zeros((1, 6)), ["a"], None, "is zero or has numbers that are not finite"),
        (np.full((1, 6), np.nan), ["a"], None, "is zero or has numbers that are not finite"),
        (np.ones((0, 6)), [], None, "an index has at least one"),
    ],
)
def test_arrays_that_do_not_fit(model: Embedder, vectors, names, labels, cause):
    with pytest.raises(UsageError, match=cause):
        Index.of(model, vectors, names, labels)


def test_queries_that_do_not_fit(model: Embedder):
    made = Index.of(model, np.eye(SIZE, dtype=np.float32), list("abcdef"))
    with pytest.raises(UsageError, match="top_k is 0"):
        made.search(np.ones((1, SIZE)), top_k=0)
    with pytest.raises(UsageError, match="accepted: \\[number, 6\\]"):
        made.search(np.ones(SIZE))
    assert made.search(np.zeros((0, SIZE))) == []


# The file


def rewritten(path: Path, **changes: bytes | None) -> None:
    """Replace members of a file by their names; ``None`` takes one out."""
    with zipfile.ZipFile(path) as archive:
        members = {item.filename: archive.read(item) for item in archive.infolist()}
    for name, data in changes.items():
        members[f"{name}.npy"] = data
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)


def npy(array: np.ndarray, **header: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    data = file.getvalue()
    for name, value in header.items():
        data = data.replace(name.encode(), str(value).encode())
    return data


def with_facts(path: Path, **changes: object) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(arrays["metadata"].tobytes())
    rewritten(path, metadata=npy(np.frombuffer(dump_digested({**facts, **changes}), np.uint8)))


@pytest.fixture
def written(model: Embedder, folder: Path) -> Path:
    return krl_runtime.index(model, folder).path


def test_numpy_reads_the_file_without_pickles(written: Path):
    with np.load(written, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["labels", "metadata", "names", "vectors"]
        assert arrays["vectors"].shape == (12, SIZE)


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": npy(np.ones((12, SIZE), np.float32))},  # another digest
        {"vectors": npy(np.ones((12, SIZE), np.float64))},
        {"vectors": npy(np.array([{}], dtype=object))},
        {"vectors": None},
        {"metadata": None},
        {"metadata": npy(np.frombuffer(b"{}", np.uint8))},
        {"metadata": npy(np.frombuffer(b"[" * 100_000, np.uint8))},
        {"more": npy(np.ones(3))},
        {"labels": b"none"},
        {"names": b""},
    ],
)
def test_damaged_files(written: Path, changes: dict):
    rewritten(written, **changes)
    with pytest.raises(DataError, match=r"is damaged or no index .*; make it again with krl-runtime index --overwrite"):
        Index.open(written)


def test_a_header_that_asks_for_a_lot_of_memory_allocates_nothing(written: Path):
    """NumPy itself would make an array of the size that the header names, before it reads."""
    with np.load(written, allow_pickle=False) as arrays:
        facts, vectors = json.loads(arrays["metadata"].tobytes()), arrays["vectors"]
    data = npy(vectors).replace(b"(12, 6), ", b"(9999999999999, 6), ")
    facts["arrays"]["vectors"][0] = [9999999999999, 6]
    rewritten(written, vectors=data, metadata=npy(np.frombuffer(dump_digested(facts), np.uint8)))
    with pytest.raises(DataError, match="is damaged or no index"):
        Index.open(written)


@pytest.mark.parametrize("cut", [0, 1, 100, 1000, -1, -30])
def test_files_that_end_early(written: Path, cut: int):
    written.write_bytes(written.read_bytes()[:cut])
    with pytest.raises(DataError, match="is damaged or no index"):
        Index.open(written)


def test_every_changed_byte_is_found(written: Path):
    data = bytearray(written.read_bytes())
    generator = np.random.default_rng(0)
    good = Index.open(written)
    for position in generator.integers(0, len(data), 150):
        changed = bytearray(data)
        changed[position] ^= 0x41
        written.write_bytes(changed)
        try:
            found = Index.open(written)
        except DataError:
            continue
        # What remains are bytes that nothing reads, as times in the archive.
        assert (found.names, found.labels) == (good.names, good.labels)
        np.testing.assert_array_equal(found.vectors, good.vectors)


def test_compressed_and_large_files(written: Path, monkeypatch):
    with zipfile.ZipFile(written) as archive:
        members = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(DataError, match="a member is compressed"):
        Index.open(written)
    monkeypatch.setattr(files, "_MAX_BYTES", 1000)
    with pytest.raises(DataError, match="bytes; at most 1000 are accepted"):
        Index.open(written)


def test_another_schema_version(written: Path):
    with_facts(written, schema_version=2)
    with pytest.raises(DataError, match="has schema version 2; this krl reads version 1; make it again"):
        Index.open(written)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_names": []},
        {"label_names": 5},
        {"arrays": {}},
        {"arrays": {"vectors": 3}},
        {"model": None},
        {"variant": 3},
        {"least_similarity": "0.5"},
        {"least_similarity": True},
        {"calibration": []},
    ],
)
def test_facts_that_do_not_fit(written: Path, changes: dict):
    with_facts(written, **changes)
    with pytest.raises(DataError, match="is damaged or no index"):
        Index.open(written)


# The graph


@pytest.fixture
def small_graph(monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.setattr(graph, "LARGE", 300)


def cloud(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, SIZE)).astype(np.float32)


@pytest.mark.usefixtures("small_graph")
def test_many_items_get_a_graph_that_finds_what_exact_search_does(model: Embedder, tmp_path: Path):
    vectors, queries = cloud(2000), cloud(50, 1)
    few = Index.of(model, vectors[:300], [str(number) for number in range(300)]).save(tmp_path / "few")
    assert few.to_dict()["search"] == "exact"
    made = Index.of(model, vectors, [str(number) for number in range(2000)]).save(tmp_path / "many")
    opened = Index.open(tmp_path / "many", model)
    assert opened.to_dict()["search"] == "graph"
    exact = replace(opened, graph=None)
    near, wanted = opened.search(queries, top_k=5), exact.search(queries, top_k=5)
    same = [one == other for one, other in zip(near, wanted, strict=True)]
    assert np.mean(same) >= 0.96
    assert opened.search(queries[:1], 2000)[0] == exact.search(queries[:1], 2000)[0]
    more = opened.add(cloud(100, 2), [f"new{number}" for number in range(100)])
    assert more.search(cloud(100, 2), top_k=1)[7].neighbors[0].name == "new7"
    saved = more.save(tmp_path / "more")
    assert saved.to_dict()["search"] == "graph"
    changed = made.add(cloud(1, 3), ["5"], overwrite=True)
    assert changed.graph is None
    assert changed.save(tmp_path / "changed").search(cloud(1, 3), top_k=1)[0].neighbors[0].name == "5"


@pytest.mark.usefixtures("small_graph")
def test_without_usearch_search_is_exact_and_the_reason_is_logged(model: Embedder, tmp_path: Path, monkeypatch, caplog):
    vectors = cloud(400)
    names = [str(number) for number in range(400)]
    Index.of(model, vectors, names).save(tmp_path / "with")
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    monkeypatch.setitem(sys.modules, "usearch", None)
    with caplog.at_level(logging.WARNING, "krl"):
        (found,) = Index.open(tmp_path / "with").search(vectors[9:10], top_k=1)
    assert found.neighbors[0].name == "9"
    assert "search is exact, and slower: fast search of more than" in caplog.text
    assert Index.of(model, vectors, names).save(tmp_path / "without").graph is None


@pytest.mark.usefixtures("small_graph")
def test_a_graph_of_other_vectors_is_not_used(model: Embedder, tmp_path: Path, caplog):
    names = [str(number) for number in range(400)]
    made = Index.of(model, cloud(400), names).save(tmp_path / "a")
    odd = Index.of(model, cloud(401), [*names, "400"])
    for data in (made.graph,):
        with caplog.at_level(logging.WARNING, "krl"):
            (found,) = replace(odd, graph=data).search(cloud(401)[400:], top_k=1)
        assert found.neighbors[0].name == "400"
        assert "search is exact, and slower: the graph of the index" in caplog.text
        caplog.clear()


def test_a_graph_may_be_opened_before_a_model_is_loaded(model: Embedder, tmp_path: Path, monkeypatch):
    """usearch and ONNX Runtime, imported in this order, crash a process."""
    pytest.importorskip("usearch")
    monkeypatch.setattr(graph, "LARGE", 300)
    Index.of(model, cloud(400), [str(number) for number in range(400)]).save(tmp_path / "a")
    code = (
        "import sys, krl_runtime, numpy\n"
        "from krl_runtime.retrieval import graph\n"
        "index = krl_runtime.Index.open(sys.argv[1])\n"
        "print(index.search(index.vectors[7:8], 1)[0].neighbors[0].name, 'usearch' in sys.modules)\n"
        "print(krl_runtime.load(sys.argv[2]).size)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a"), str(model.bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["7", "True", "6"], done.stderr


@pytest.mark.usefixtures("small_graph")
def test_a_graph_from_elsewhere_is_not_given_to_usearch(model: Embedder, tmp_path: Path, monkeypatch, caplog):
    """It trusts the bytes: changed ones overwrite memory. So only this user's graphs of this machine are used."""
    names = [str(number) for number in range(400)]
    path = index_path(model.bundle.path)
    made = Index.of(model, cloud(400), names).save(path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr("usearch.index.Index.restore", lambda *_: pytest.fail("the graph was read"))
    with caplog.at_level(logging.WARNING, "krl"):
        (found,) = Index.open(path, model).search(cloud(400)[9:10], top_k=1)
    assert found.neighbors[0].name == "9"
    assert "was not built by this user on this machine; build it here with: krl-runtime index NAME.krl" in caplog.text
    more = made.add(cloud(1, 5), ["new"])  # is built anew, and not extended
    assert len(more.graph) != len(made.graph)
    monkeypatch.undo()
    monkeypatch.setattr(graph, "LARGE", 300)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    caplog.clear()
    again = krl_runtime.index(model)
    assert again.names == made.names
    with caplog.at_level(logging.WARNING, "krl"):
        assert Index.open(path).search(cloud(400)[9:10], top_k=1) == [found]
    assert caplog.text == ""


def test_an_index_that_is_there_is_calibrated(model: Embedder, folder: Path):
    made = krl_runtime.index(model, folder)
    later = krl_runtime.index(model, none_of_these=0.4)
    assert (later.names, later.path) == (made.names, made.path)
    near = made.vectors.astype(float) @ made.vectors.T
    np.fill_diagonal(near, -2)
    refused = (near.max(axis=1) < later.least_similarity).mean()
    assert refused == later.calibration["refused"]
    assert 0.25 < refused <= 0.4
    assert Index.open(made.path).least_similarity == later.least_similarity
