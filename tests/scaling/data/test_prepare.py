import hashlib
import json
import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from scaling.data import sources
from scaling.data.indexed import IndexedDataset, IndexedDatasetWriter
from scaling.data.prepare import MarkovProcess, load_corpus, prepare_corpus, verify_corpus
from scaling.errors import UserError

TEXTS = [f"document {i}: " + "some words " * (i % 7 + 1) for i in range(200)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents_of(corpus, split: str) -> list[bytes]:
    dataset = IndexedDataset(corpus.path / split)
    documents = [dataset.document(i).tobytes() for i in range(dataset.num_documents)]
    assert all(document.endswith(b"\0") for document in documents)
    return [document[:-1] for document in documents]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


@pytest.fixture
def mine(tmp_path):
    return write_jsonl(tmp_path / "mine.jsonl", TEXTS)


def test_every_document_is_in_exactly_one_split(mine, tmp_path):
    corpus = prepare_corpus(mine, tmp_path / "data")
    train, validation = documents_of(corpus, "train"), documents_of(corpus, "validation")
    assert sorted(train + validation) == sorted(text.encode() for text in TEXTS)
    assert (corpus.train.documents, corpus.validation.documents) == (len(train), len(validation))
    assert corpus.train_tokens == sum(len(document) + 1 for document in train)
    size = sum(map(len, TEXTS))
    assert 0.09 * size < corpus.validation.text_bytes < 0.12 * size
    assert corpus.bytes_per_token == corpus.validation.text_bytes / corpus.validation_tokens
    assert (corpus.name, corpus.tokenizer, corpus.vocab_size) == ("mine", "byte", 256)


def test_fingerprint_and_split_depend_on_the_content_alone(mine, tmp_path):
    """Another machine: other file names, another order, another kind of file, some documents twice."""
    first = prepare_corpus(mine, tmp_path / "data")
    write_jsonl(tmp_path / "other/b/x.jsonl", TEXTS[::-1][:120])
    write_jsonl(tmp_path / "other/a.jsonl", TEXTS[:100])
    second = prepare_corpus(tmp_path / "other", tmp_path / "elsewhere")
    assert second.fingerprint == first.fingerprint
    assert second.duplicates_dropped == 20 and first.duplicates_dropped == 0
    assert contents(first.path)["train.bin"] == contents(second.path)["train.bin"]
    third = prepare_corpus(write_jsonl(tmp_path / "third.jsonl", TEXTS[1:]), tmp_path / "data")
    assert third.fingerprint != first.fingerprint
    moved = set(documents_of(third, "validation")) ^ set(documents_of(first, "validation"))
    assert len(moved) <= 2, "a small change of the text must not reshuffle the split"


def test_the_fingerprint_can_be_checked_with_sha256sum(mine, tmp_path):
    corpus = prepare_corpus(mine, tmp_path / "data")
    lines = "".join(
        f"{hashlib.sha256((corpus.path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("train.bin", "validation.bin")
    )
    assert corpus.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def test_the_manifest_names_every_file_with_its_hash(tmp_path):
    for name, text in {"a.txt": "alpha", "b.txt": "beta", "c.txt": "alpha", "d.txt": "", "e.txt": "nul\0"}.items():
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / name).write_text(text)
    corpus = prepare_corpus(tmp_path / "text", tmp_path / "data")
    files = {file.name: file for file in corpus.files}
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt"):
        assert files[name].sha256 == hashlib.sha256((tmp_path / "text" / name).read_bytes()).hexdigest()
    assert {files["a.txt"].split, files["b.txt"].split} == {"train", "validation"}
    assert files["c.txt"].split == "duplicate" and files["d.txt"].split == files["e.txt"].split == "skipped"
    assert corpus.duplicates_dropped == 1 and corpus.skipped == {"with NUL bytes": 1}
    assert load_corpus(corpus.path) == corpus


def test_preparing_again_reads_nothing(mine, tmp_path):
    first = prepare_corpus(mine, tmp_path / "data")
    status = mine.stat()
    mine.write_bytes(b"x" * status.st_size)
    os.utime(mine, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prepare_corpus(mine, tmp_path / "data") == first
    assert prepare_corpus(first.path, tmp_path / "data") == first


def test_a_source_that_was_only_touched_keeps_its_corpus(mine, tmp_path):
    first = prepare_corpus(mine, tmp_path / "data")
    os.utime(mine, (1, 1))
    again = prepare_corpus(mine, tmp_path / "data")
    assert (again.path, again.fingerprint) == (first.path, first.fingerprint)
    assert again.source_signature != first.source_signature
    assert prepare_corpus(mine, tmp_path / "data") == again


def test_changed_text_gets_a_new_name_and_the_old_corpus_stays(mine, tmp_path):
    first = prepare_corpus(mine, tmp_path / "data")
    before = contents(first.path)
    write_jsonl(mine, TEXTS + ["one more"])
    second = prepare_corpus(mine, tmp_path / "data")
    assert second.name == second.path.name == f"mine-{second.fingerprint[:8]}"
    assert prepare_corpus(mine, tmp_path / "data") == second
    assert contents(first.path) == before and load_corpus(first.path) == first
    with pytest.raises(UserError, match="data/mine: holds other tokens"):
        prepare_corpus(mine, tmp_path / "data", name="mine")


def test_a_name_can_be_given(mine, tmp_path):
    corpus = prepare_corpus(mine, tmp_path / "data", name="tale-2")
    assert corpus.path == tmp_path / "data/tale-2" and corpus.name == "tale-2"
    assert prepare_corpus(mine, tmp_path / "data", name="tale-2") == corpus


def test_the_default_corpus_follows_the_versions_installed(tmp_path, monkeypatch):
    """Source text of this Python alone, to be quick; then another Python."""
    monkeypatch.setattr(sources, "dependencies", dict)
    first = prepare_corpus("python", tmp_path / "data")
    assert first.train_tokens > 5e6 and first.kind == "python" and set(first.versions) == {"python"}
    assert b"def " in documents_of(first, "validation")[0] + documents_of(first, "train")[0]
    monkeypatch.setattr(sources.platform, "python_version", lambda: "3.99")
    assert prepare_corpus("python", tmp_path / "data").path == first.path, "the same text under another version"
    everything = sources.python_files
    monkeypatch.setattr(sources, "python_files", lambda distributions: everything(distributions)[:500])
    monkeypatch.setattr(sources.platform, "python_version", lambda: "3.100")
    second = prepare_corpus("python", tmp_path / "data")
    assert second.name == f"python-{second.fingerprint[:8]}"
    assert load_corpus(first.path).fingerprint == first.fingerprint


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_tokens_made_by_megatron_can_be_trained_on(tmp_path, dtype):
    rng = np.random.default_rng(0)
    originals = [rng.integers(0, 50_000, 20).astype(dtype) for _ in range(50)] + [np.array([50_256], dtype)]
    with IndexedDatasetWriter(tmp_path / "gpt2_text_document", dtype) as writer:
        for tokens in originals:
            writer.add_document(tokens)
    for source in ("gpt2_text_document", "gpt2_text_document.bin", "gpt2_text_document.idx"):
        corpus = prepare_corpus(tmp_path / source, tmp_path / "data")
    assert [p.name for p in (tmp_path / "data").iterdir() if p.name[0] != "."] == ["gpt2_text_document"]
    assert (corpus.vocab_size, corpus.bytes_per_token, corpus.end_of_document) == (50_257, None, None)
    halves = [IndexedDataset(corpus.path / split) for split in ("train", "validation")]
    kept = [half.document(i).tolist() for half in halves for i in range(half.num_documents)]
    assert sorted(kept) == sorted(tokens.tolist() for tokens in originals)
    assert halves[0].dtype == np.uint16


@pytest.mark.parametrize("values, words", [([1.5, 2], "float64 values, not tokens"), ([5, -1], "holds token -1")])
def test_a_megatron_file_without_tokens_is_refused(tmp_path, values, words):
    tokens = np.array(values)
    with IndexedDatasetWriter(tmp_path / "odd", tokens.dtype) as writer:
        writer.add_document(tokens)
        writer.add_document(tokens[:1])
    with pytest.raises(UserError, match=words):
        prepare_corpus(tmp_path / "odd", tmp_path / "data")


def test_one_document_cannot_be_split(tmp_path):
    for name, texts in {"one": ["only"], "same": ["twice", "twice"], "none": [], "blank": ["", "a\0b"]}.items():
        with pytest.raises(UserError, match=rf"{name}.jsonl: [01] distinct usable documents in 1 files"):
            prepare_corpus(write_jsonl(tmp_path / f"{name}.jsonl", texts), tmp_path / "data")
    assert contents(tmp_path / "data") == {}


def test_a_full_disk_is_one_clear_message_and_leaves_nothing(mine, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="data.*cannot be written.*make room there") as caught:
            prepare_corpus(mine, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".prepare.lock"]
    assert prepare_corpus(mine, tmp_path / "data").name == "mine"


def test_a_folder_that_cannot_be_written_is_named(mine, tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="data: the corpus cannot be written"):
        prepare_corpus(mine, tmp_path / "data")


def test_a_foreign_folder_is_left_alone(mine, tmp_path):
    (tmp_path / "data/mine").mkdir(parents=True)
    (tmp_path / "data/mine/thesis.doc").write_text("precious")
    with pytest.raises(UserError, match="data/mine: is there and is no prepared corpus"):
        prepare_corpus(mine, tmp_path / "data")
    assert contents(tmp_path / "data") == {"mine/thesis.doc": b"precious"}


def test_what_a_killed_process_left_is_cleared_away(mine, tmp_path):
    (tmp_path / "data/.prepare.tmp").mkdir(parents=True)
    (tmp_path / "data/.prepare.tmp/train.bin").write_bytes(b"half")
    corpus = prepare_corpus(mine, tmp_path / "data")
    assert verify_corpus(corpus.path) == corpus
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".prepare.lock", "mine"]


def _prepare(source, data_root, queue):
    queue.put(prepare_corpus(source, data_root).model_dump_json())


def test_processes_that_prepare_at_once_share_one_corpus(mine, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_prepare, args=(mine, tmp_path / "data", queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = {queue.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(found) == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".prepare.lock", "mine"]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda p: os.truncate(p / "train.bin", 100), "train.bin: 100 bytes where train.idx needs"),
        (lambda p: os.truncate(p / "validation.idx", 3), "validation.idx: 3 bytes are too few"),
        (lambda p: (p / "train.bin").unlink(), "train.bin: there is no such file"),
        (lambda p: os.truncate(p / "manifest.json", 50), "manifest.json: is damaged: remove"),
        (lambda p: (p / "manifest.json").write_text("{}"), "manifest.json: .*remove"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json: is damaged: remove"),
        (lambda p: (p / "manifest.json").unlink(), "holds no prepared corpus"),
        (
            lambda p: [os.replace(p / f"validation.{x}", p / f"train.{x}") for x in ("bin", "idx")],
            "train.idx: .* tokens, manifest.json says",
        ),
    ],
)
def test_a_damaged_corpus_names_the_file_and_the_remedy(mine, tmp_path, damage, words):
    corpus = prepare_corpus(mine, tmp_path / "data")
    damage(corpus.path)
    with pytest.raises(UserError, match=words):
        load_corpus(corpus.path)
    with pytest.raises(UserError):
        prepare_corpus(mine, tmp_path / "data")


def test_verify_sees_a_flipped_bit(mine, tmp_path):
    corpus = prepare_corpus(mine, tmp_path / "data")
    tokens = bytearray((corpus.path / "train.bin").read_bytes())
    tokens[77] ^= 1
    (corpus.path / "train.bin").write_bytes(tokens)
    load_corpus(corpus.path)
    with pytest.raises(UserError, match="the tokens have changed"):
        verify_corpus(corpus.path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "../up"}, "name = '../up'"),
        ({"validation_fraction": 1.0}, "validation_fraction = 1.0"),
        ({"validation_fraction": 0.0}, "validation_fraction = 0.0"),
    ],
)
def test_impossible_options_are_refused(mine, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        prepare_corpus(mine, tmp_path / "data", **options)


def test_a_validation_fraction_can_be_given(mine, tmp_path):
    corpus = prepare_corpus(mine, tmp_path / "data", validation_fraction=0.5)
    assert 0.45 < corpus.validation.text_bytes / sum(map(len, TEXTS)) < 0.55
    drawn = prepare_corpus("synthetic", tmp_path / "data", validation_fraction=0.5, process=MarkovProcess(tokens=1000))
    assert drawn.validation_tokens == 501
