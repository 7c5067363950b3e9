"""The store and what puts things into it: Ollama's layout, atomic, nothing left behind by a failure."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from ollama_adapter.core.names import parse_name
from ollama_adapter.embedded import importer
from ollama_adapter.embedded.importer import delete_model, import_gguf, list_models
from ollama_adapter.embedded.settings import default_models_dir
from ollama_adapter.embedded.store import (
    TINYDOC,
    TINYDOC_NOTE,
    CorruptManifest,
    Store,
)
from ollama_adapter.errors import (
    AdapterError,
    InvalidModelFile,
    InvalidRequest,
    ModelNotFound,
    PoolError,
)
from tests.embedded import ggufs
from tests.embedded.daemons import Daemon


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def blob(root: Path, data: bytes) -> dict[str, Any]:
    """A blob as Ollama stores it, and the entry of a manifest that names it."""
    digest = hashlib.sha256(data).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def as_ollama(root: Path, name: str, config: dict[str, Any] | None = None, **layers: bytes) -> Path:
    """A model as the real daemon leaves it on the disk."""
    body = {"model_format": "gguf", "model_family": "llama", **(config or {})}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            **blob(root, json.dumps(body).encode()),
        },
        "layers": [
            {"mediaType": f"application/vnd.ollama.image.{kind}", **blob(root, data)}
            for kind, data in layers.items()
        ],
    }
    path = root / "manifests/registry.ollama.ai/library" / name / "latest"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path


def find(root: Path, name: str) -> Any:
    return Store(root).find(parse_name(name))


class TestImport:
    def test_a_model_lands_where_ollama_looks(self, files: Path, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []
        root = tmp_path / "models"
        name = import_gguf(
            files / "tiny.gguf", "ours/Thing:q8", root, progress=lambda *x: told.append(x)
        )
        assert str(name) == "ours/Thing:q8"
        path = root / "manifests/registry.ollama.ai/ours/Thing/q8"
        manifest = json.loads(path.read_bytes())
        (layer,) = manifest["layers"]
        assert layer["mediaType"] == "application/vnd.ollama.image.model"
        data = (root / "blobs" / layer["digest"].replace(":", "-")).read_bytes()
        assert data == (files / "tiny.gguf").read_bytes()
        assert layer["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
        config = json.loads(
            (root / "blobs" / manifest["config"]["digest"].replace(":", "-")).read_bytes()
        )
        assert config["model_family"] == "llama"
        assert config["rootfs"]["diff_ids"] == [layer["digest"]]
        assert told[-1] == (len(data), len(data))
        assert find(root, "OURS/thing:Q8").size > len(data)

    @pytest.mark.parametrize(
        "data", [b"", b"not a model", b"GGUF", ggufs.llama()[:5000], ggufs.llama()[:-4096]]
    )
    def test_a_broken_file_leaves_nothing(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        with pytest.raises(InvalidModelFile) as refused:
            import_gguf(path, "x", tmp_path / "models")
        assert str(refused.value).startswith(f"{path}: ")
        assert refused.value.hint
        assert not (tmp_path / "models").exists()

    def test_no_file_no_name_no_room(
        self, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = files / "tiny.gguf"
        with pytest.raises(FileNotFoundError):
            import_gguf(tmp_path / "none.gguf", "x", tmp_path / "models")
        with pytest.raises(InvalidModelFile, match="directory"):
            import_gguf(tmp_path, "x", tmp_path / "models")
        with pytest.raises(InvalidRequest):
            import_gguf(good, "a b", tmp_path / "models")
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
        with pytest.raises(PoolError, match="MiB are needed"):
            import_gguf(good, "x", tmp_path / "models")
        assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize("blocked", ["models", "models/blobs", "models/manifests"])
    def test_a_store_that_cannot_be_written_is_named(
        self, blocked: str, files: Path, tmp_path: Path
    ) -> None:
        (tmp_path / blocked).parent.mkdir(exist_ok=True)
        (tmp_path / blocked).write_text("a file where a directory should be")
        with pytest.raises(PoolError) as refused:
            import_gguf(files / "tiny.gguf", "x", tmp_path / "models")
        assert f"the model store {tmp_path / 'models'}" in str(refused.value)
        assert "OLLAMA_MODELS" in refused.value.hint

    def test_a_failure_in_the_middle_leaves_no_part(self, files: Path, tmp_path: Path) -> None:
        def fail(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_gguf(files / "tiny.gguf", "x", tmp_path, progress=fail)
        assert everything(tmp_path) == set()

    def test_an_imported_model_goes_without_a_trace(self, files: Path, tmp_path: Path) -> None:
        import_gguf(files / "tiny.gguf", "one", tmp_path)
        only_one = everything(tmp_path)
        import_gguf(files / "bare.gguf", "two", tmp_path)
        assert [str(each.name) for each in list_models(tmp_path)][:2] == [
            "two:latest",
            "one:latest",
        ]
        delete_model("TWO", tmp_path)
        assert everything(tmp_path) == only_one
        delete_model("one", tmp_path)
        assert everything(tmp_path) == set()
        with pytest.raises(ModelNotFound):
            delete_model("one", tmp_path)
        with pytest.raises(ModelNotFound):
            delete_model("tinydoc", tmp_path)


class TestStore:
    def test_a_model_that_ollama_stored_is_read(self, files: Path, tmp_path: Path) -> None:
        weights = (files / "tiny.gguf").read_bytes()
        as_ollama(
            tmp_path,
            "theirs",
            model=weights,
            template=b"{{ .Prompt }}",
            system=b"be brief",
            params=b'{"temperature":0,"stop":["dog"]}',
            license=b"MIT",
            messages=b'[{"role":"user","content":"hi"}]',
        )
        model = find(tmp_path, "theirs")
        assert model.text("template") == "{{ .Prompt }}"
        assert model.text("system") == "be brief"
        assert model.parameters() == {"temperature": 0, "stop": ["dog"]}
        assert model.licenses() == ["MIT"]
        assert model.messages() == [{"role": "user", "content": "hi"}]
        assert model.weights.read_bytes() == weights
        assert Store(tmp_path).header(model.weights).architecture == "llama"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "{}",
            '{"config":5}',
            '{"config":{"digest":7}}',
            '{"config":{"digest":"sha256:../../x"}}',
        ],
    )
    def test_a_corrupt_manifest_hides_nothing_else(
        self, text: str, files: Path, tmp_path: Path
    ) -> None:
        import_gguf(files / "tiny.gguf", "good", tmp_path)
        as_ollama(tmp_path, "bad").write_text(text)
        with pytest.raises(CorruptManifest):
            find(tmp_path, "bad")
        names = [str(each.name) for each in Store(tmp_path, bundled=False).models()]
        assert names == ["good:latest"]
        import_gguf(files / "bare.gguf", "more", tmp_path)
        before = everything(tmp_path / "blobs")
        delete_model("more", tmp_path)
        assert everything(tmp_path / "blobs") == before  # whose they are is not known

    def test_stray_files_are_not_models(self, tmp_path: Path) -> None:
        for stray in (".DS_Store", "a b/c/d/e", "h/n/m/t/x"):
            (tmp_path / "manifests" / stray).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "manifests" / stray).write_text("{}")
        assert Store(tmp_path, bundled=False).models() == []

    def test_a_blob_that_two_names_share_stays(self, files: Path, tmp_path: Path) -> None:
        import_gguf(files / "tiny.gguf", "one", tmp_path)
        store = Store(tmp_path)
        store.copy(find(tmp_path, "one"), parse_name("two"))
        delete_model("one", tmp_path)
        assert find(tmp_path, "two").weights.is_file()

    def test_copying_onto_another_case_replaces_it(self, files: Path, tmp_path: Path) -> None:
        import_gguf(files / "tiny.gguf", "Name", tmp_path)
        import_gguf(files / "bare.gguf", "name", tmp_path)
        assert [str(each.name) for each in Store(tmp_path, bundled=False).models()] == [
            "Name:latest"
        ]

    def test_the_bundled_model_is_listed_last_and_gives_way(
        self, files: Path, tmp_path: Path
    ) -> None:
        assert [each.bundled for each in Store(tmp_path).models()] == [True]
        assert find(tmp_path, "TinyDoc").weights == TINYDOC
        with pytest.raises(InvalidRequest, match="cannot be changed"):
            import_gguf(files / "tiny.gguf", "TinyDoc:latest", tmp_path)
        # a store that came from elsewhere may have one of its own
        import_gguf(files / "tiny.gguf", "other", tmp_path)
        other = next(tmp_path.rglob("other"))
        other.rename(other.with_name("tinydoc"))
        assert [each.bundled for each in Store(tmp_path).models()] == [False]

    def test_where_models_are(self, tmp_path: Path) -> None:
        assert default_models_dir({"OLLAMA_MODELS": ' "/m" '}, tmp_path) == Path("/m")
        assert "ollama-adapter" in str(default_models_dir({}, tmp_path))
        (tmp_path / ".ollama/models").mkdir(parents=True)
        assert default_models_dir({}, tmp_path) == tmp_path / ".ollama/models"


class TestOverHttp:
    def test_a_manifest_dropped_in_is_served_at_once(self, files: Path, daemon: Daemon) -> None:
        as_ollama(
            daemon.models,
            "dropped",
            {"parent_model": "other:latest"},
            model=(files / "tiny.gguf").read_bytes(),
            system=b"be brief",
            params=b'{"num_predict":3,"stop":["x","y"],"temperature":0.5}',
        )
        entries = {each["name"]: each for each in daemon.ask("/api/tags").json["models"]}
        assert entries["dropped:latest"]["details"] == {
            "parent_model": "other:latest",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "46K",
            "quantization_level": "F32",
            "context_length": 512,
            "embedding_length": 64,
        }
        assert entries["dropped:latest"]["capabilities"] == ["completion"]
        shown = daemon.ask("/api/show", {"model": "dropped"}).json
        assert shown["system"] == "be brief"
        assert shown["parameters"].splitlines()[1] == f'{"stop":<30} "x"'
        assert shown["model_info"]["general.architecture"] == "llama"
        assert shown["model_info"]["tokenizer.ggml.tokens"] is None
        verbose = daemon.ask("/api/show", {"model": "dropped", "verbose": True}).json
        assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) == 260
        rendered = daemon.chat("x", model="dropped", _debug_render_only=True).json
        assert "be brief" in rendered["_debug_info"]["rendered_template"]
        last = daemon.generate(model="dropped", format={"type": "string", "minLength": 99}).lines[
            -1
        ]
        assert last["eval_count"] == 3
        assert daemon.ask("/api/delete", {"model": "dropped"}, method="DELETE").status == 200

    def test_a_model_on_another_machine_is_refused(self, daemon: Daemon) -> None:
        remote = {"remote_host": "http://127.0.0.1:9", "remote_model": "gpt-oss:20b"}
        as_ollama(daemon.models, "remotey", remote)
        entries = {each["name"]: each for each in daemon.ask("/api/tags").json["models"]}
        assert entries["remotey:latest"]["remote_host"] == "http://127.0.0.1:9"
        for answer in (daemon.generate(model="remotey"), daemon.chat("x", model="remotey")):
            assert answer.status == 403
            assert answer.error == "ollama cloud is disabled: remote model is unavailable"
        shown = daemon.ask("/api/show", {"model": "remotey"})
        assert shown.status == 403
        assert shown.error == "ollama cloud is disabled: remote model details are unavailable"
        local = daemon.generate(model="remotey:local")
        assert (local.status, local.error) == (404, "model 'remotey:local' not found")

    def test_damage_is_told_as_ollama_tells_it(self, files: Path, daemon: Daemon) -> None:
        whole = (files / "tiny.gguf").read_bytes()
        as_ollama(daemon.models, "cut", model=whole[:-999])
        answer = daemon.generate(model="cut")
        assert answer.status == 500
        assert answer.error.startswith('tensor "')
        assert "exceeds file size" in answer.error
        as_ollama(daemon.models, "stub", model=whole[:100])
        assert daemon.chat("x", model="stub").error == "unexpected EOF"
        missing = json.loads(as_ollama(daemon.models, "missing", model=b"x").read_bytes())
        digest = missing["layers"][0]["digest"].replace(":", "-")
        (daemon.models / "blobs" / digest).unlink()
        answer = daemon.generate(model="missing")
        assert answer.status == 404
        assert answer.error == 'model "missing" not found, try pulling it first'
        as_ollama(daemon.models, "torn").write_text("{")
        for answer in (
            daemon.generate(model="torn"),
            daemon.ask("/api/delete", {"model": "torn"}, method="DELETE"),
        ):
            assert (answer.status, answer.error) == (500, "unexpected EOF")
        assert daemon.ask("/api/tags").status == 200

    def test_blobs_and_create(self, files: Path, daemon: Daemon) -> None:
        def create(data: bytes, **fields: Any) -> Any:
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            daemon.ask(f"/api/blobs/{digest}", data)
            files = {"m.gguf": digest}
            return daemon.ask("/api/create", {"model": "made", "files": files, **fields})

        whole = ggufs.llama(seed=9)
        for data, words in (
            (b"nonsense", "supplied file was not in GGUF format"),
            (whole[:1000], "unexpected EOF"),
            (whole[: len(whole) // 2], "exceeds file size"),
        ):
            answer = create(data)
            assert answer.status == 200
            assert words in answer.error
            assert create(data, stream=False).status == 400
        digest = hashlib.sha256(whole).hexdigest()
        assert daemon.ask(f"/api/blobs/sha256:{digest}", whole).status == 201
        assert daemon.ask(f"/api/blobs/sha256:{digest}", b"").status == 200
        assert daemon.ask(f"/api/blobs/sha256:{digest}", method="HEAD").status == 200
        lines = [each["status"] for each in create(whole).lines]
        assert lines[0] == "parsing GGUF"
        assert lines[1] == f"using existing layer sha256:{digest}"
        assert lines[-2:] == ["writing manifest", "success"]
        child = {"model": "child", "from": "made", "parameters": {"seed": 5}, "stream": False}
        assert daemon.ask("/api/create", {**child, "license": ["A", "B"]}).json == {
            "status": "success"
        }
        shown = daemon.ask("/api/show", {"model": "child"}).json
        assert shown["license"] == "A\nB"
        assert shown["details"]["parent_model"] == "made:latest"
        for fields, status in (
            ({"from": "nowhere"}, 404),
            ({"files": {"a": "zzz"}}, 400),
            ({"files": {"a": "sha256:" + "0" * 64}}, 400),
            ({"files": {"a": "x", "b": "y"}}, 400),
            ({"from": "made", "quantize": "q4_0"}, 400),
            ({"from": "made", "remote_host": "http://x"}, 400),
        ):
            request = {"model": "other", "stream": False, **fields}
            assert daemon.ask("/api/create", request).status == status
        assert "other:latest" not in [
            each["name"] for each in daemon.ask("/api/tags").json["models"]
        ]

    def test_the_bundled_model_says_what_it_is_and_stays(self, daemon: Daemon) -> None:
        shown = daemon.ask("/api/show", {"model": "tinydoc"}).json
        for place in (shown["license"], shown["modelfile"], shown["details"]["note"]):
            assert TINYDOC_NOTE in place
        entries = {each["name"]: each for each in daemon.ask("/api/tags").json["models"]}
        assert "demonstration" in entries["tinydoc:latest"]["details"]["families"]
        assert daemon.ask("/api/delete", {"model": "tinydoc"}, method="DELETE").status == 400
        request = {"source": "tinydoc", "destination": "mydoc"}
        assert daemon.ask("/api/copy", request).status == 200
        assert TINYDOC_NOTE in daemon.ask("/api/show", {"model": "mydoc"}).json["license"]
        assert daemon.ask("/api/delete", {"model": "mydoc"}, method="DELETE").status == 200


def test_a_digest_is_hexadecimal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = "AB" * 32
    assert importer.blob_of(store, f"sha256:{digest}").name == f"sha256-{digest.lower()}"
    for text in ("", "sha256:", "sha256:../../x", f"sha256:{digest}/..", f"md5:{digest}"):
        with pytest.raises(ValueError, match="invalid digest format"):
            importer.blob_of(store, text)
    assert issubclass(InvalidModelFile, AdapterError)
