"""`trtforge sign` and `verify`, and runs that sign what they build."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest

from engines.errors import NotTrusted
from engines.signing import trust
from engines.signing.envelope import opened, public_key
from pipeline.artifact import digest_of_engine
from pipeline.errors import ConfigError
from pipeline.plan import read_plan
from pipeline.signing import options
from tests.pipeline.bundles import packed, unpacked

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("securesystemslib")
pytest.importorskip("cryptography")


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run sets in the environment is gone afterwards."""
    monkeypatch.setenv(trust.TRUSTED, "")
    monkeypatch.delenv(options.KEY, raising=False)


@pytest.fixture
def key(command: Command, tmp_path: Path) -> Path:
    said = command("sign", "--new-key", tmp_path / "release.key")
    assert said.status == 0, said.err
    assert "keep it secret" in said.out
    return tmp_path / "release.key"


def statement_in(file: Path, key: Path) -> Any:
    return opened(file, [public_key(key.with_suffix(".pub"))]).statement


def test_an_engine_with_its_record_is_signed_and_verified(
    command: Command, key: Path, tiny: Path, tmp_path: Path
) -> None:
    engine, public = tmp_path / "engine.onnx", key.with_suffix(".pub")
    assert command("build", tiny / "tiny.onnx", "--backend", "onnxruntime", "-o", engine).status == 0
    assert command("verify", engine, "--trusted", public).status == 2
    said = command("sign", engine, "--key", key)
    assert said.status == 0, said.err
    assert said.out.strip() == f"{engine}.dsse.json"
    statement = statement_in(tmp_path / "engine.onnx.dsse.json", key)
    assert [subject["name"] for subject in statement["subject"]] == ["engine.onnx", "record"]
    assert statement["subject"][0]["digest"]["sha256"] == trust.sha256_of(engine)
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["backend"] == "onnxruntime"
    assert str(tmp_path) not in json.dumps(statement)
    said = command("verify", engine, "--trusted", public)
    assert (said.status, said.out.strip()) == (0, f"{engine}: signed by {public}")

    record = tmp_path / "engine.onnx.json"
    before = record.read_text()
    record.write_text(before.replace('"precision": "fp32"', '"precision": "int8"'))
    said = command("verify", engine, "--trusted", public)
    assert said.status == 5, said.out
    assert f"{engine}: its record is not what {public} signed with it; copy or build again" in said.err
    record.write_text(before)
    engine.write_bytes(engine.read_bytes() + b"\0")
    record.unlink()
    said = command("verify", engine, "--trusted", public)
    assert said.status == 5
    assert f"{engine}: is not what {public} signed (SHA-256 differs); copy or build again" in said.err


def test_a_bundle(command: Command, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(b"sums and files" * 100)
    monkeypatch.setenv(options.KEY, str(key))
    assert command("sign", bundle).status == 0
    monkeypatch.setenv(trust.TRUSTED, str(key.with_suffix(".pub")))
    assert command("verify", bundle).status == 0
    bundle.write_bytes(b"sums and files" * 101)
    assert command("verify", bundle).status == 5


def test_a_bundle_brings_the_keys_that_its_plan_trusts(
    command: Command, key: Path, plan: Path, warm_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else no run of it could begin, for no file may come beside those of a bundle."""
    text = plan.read_text().replace('["fp32", "int8"]', '["fp32"]')
    plan.write_text(f'{text}\n[sign]\ntrusted = ["{key.with_suffix(".pub")}"]\n')
    folder = unpacked(packed(command, plan, store=warm_store))
    assert (folder / "trusted/1.pub").read_bytes() == key.with_suffix(".pub").read_bytes()
    assert read_plan(folder / "plan.toml").sign.trusted == ("trusted/1.pub",)
    key.with_suffix(".pub").unlink()
    monkeypatch.chdir(folder)
    on_reference = 'variants.backends=["reference"]'
    built = command("build", "plan.toml", "--set", on_reference)
    assert built.status == 0, built.err
    # Whom the device trusts has the last word.
    other = key.with_name("other.key")
    assert command("sign", "--new-key", other).status == 0
    monkeypatch.setenv(trust.TRUSTED, str(other.with_suffix(".pub")))
    refused = command("build", "plan.toml", "--set", on_reference)
    assert (refused.status, "which has the last word" in refused.err) == (2, True)


def test_a_run_signs_what_it_builds_once(
    command: Command, key: Path, tiny: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(options.KEY, str(key))
    said = command("build", plan)
    assert said.status == 0, said.err
    files = sorted((tiny / ".trtforge/signatures").iterdir())
    engines = sorted((tiny / ".trtforge/build").glob("*/model.onnx"))
    assert {file.name for file in files} == {f"{trust.sha256_of(engine)}.dsse.json" for engine in engines}
    statement = statement_in(files[0], key)
    assert statement["predicate"]["buildDefinition"]["resolvedDependencies"][0]["name"] == "input 0"
    assert base64.b64decode(json.loads(files[0].read_text())["payload"])
    before = [file.stat().st_mtime_ns for file in files]
    assert command("build", plan).status == 0
    assert [file.stat().st_mtime_ns for file in files] == before, "a served engine keeps its signature"
    assert command("store", "verify", "--store", tiny / ".trtforge").status == 0
    assert command("verify", *engines, "--trusted", key.with_suffix(".pub")).status == 0


def test_report_and_gate_say_who_signed(
    command: Command, key: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = ("--set", 'variants.precisions=["fp32"]', "--set", "report.html=false", "--set", "gate.html=false")
    monkeypatch.setenv(options.KEY, str(key))
    assert command("run", plan, *on).status == 0
    assert (
        "All engines are signed with release.key."
        in json.loads(Path("trtforge-report/report.json").read_text())["notes"]
    )
    gated = command("gate", plan, *on, "--set", "gate.pays=false", "--budget", "size_mib <= 1")
    assert gated.status == 0, gated.err
    assert (
        "All engines are signed with release.key." in json.loads(Path("trtforge-gate/gate.json").read_text())["notes"]
    )


def test_engines_that_are_code_are_named_where_nobody_signs() -> None:
    assert options.signing_notes([], None) == []
    assert options.signing_notes(["fp32@tensorrt", "int8@tensorrt"], None) == [
        "Not signed: fp32@tensorrt, int8@tensorrt. These engines are code; with TRTFORGE_SIGNING_KEY set, a run signs "
        "what it builds."
    ]


def test_bad_input_is_one_sentence(
    command: Command, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "e.plan"
    engine.write_bytes(b"x")
    for arguments, sentence in [
        (["sign", engine], "--key is missing: name a private key"),
        (["sign", "--key", key], "sign: no file is named"),
        (["sign", engine, "--key", tmp_path / "no.key"], "no.key: cannot be read"),
        (["sign", tmp_path / "no.plan", "--key", key], "no.plan: does not exist"),
        (["sign", engine, "--key", key, "--gate", engine], "e.plan: cannot be read as a gate's record"),
        (["sign", "--new-key", key], "is there already"),
        (["verify", engine], "verify: no key is trusted"),
        (["verify", engine, "--trusted", key], "is a private key, a public one is expected"),
        (["verify", engine, "--trusted", key.with_suffix(".pub")], "has no signature (e.plan.dsse.json is not there)"),
    ]:
        said = command(*arguments)
        assert said.status == 2, (arguments, said)
        assert sentence in said.err
    gate = tmp_path / "gate.json"
    gate.write_text(json.dumps({"engines": [{"digest": "12", "name": "int8@tensorrt"}], "outcome": "pass"}))
    said = command("sign", engine, "--key", key, "--gate", gate)
    assert "the gate is of other engines (none has its SHA-256)" in said.err
    gate.write_text(
        json.dumps({"engines": [{"digest": trust.sha256_of(engine), "name": "int8@tensorrt"}], "outcome": "pass"})
    )
    assert command("sign", engine, "--key", key, "--gate", gate).status == 0
    details = statement_in(tmp_path / "e.plan.dsse.json", key)["predicate"]["runDetails"]
    assert details["byproducts"] == [{"name": "gate", "annotations": {"outcome": "pass", "variant": "int8@tensorrt"}}]


def test_a_gate_of_an_engine_in_several_files(
    command: Command, key: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest in gate.json is that of all of them, and not the one that is signed."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(tiny / "tiny.onnx")
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    folder = tmp_path / "e.session"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x")
    for engine in (tmp_path / "e.onnx", folder):
        gate = {"engines": [{"digest": digest_of_engine(engine), "name": "fp32@x"}], "outcome": "pass"}
        (tmp_path / "gate.json").write_text(json.dumps(gate))
        said = command("sign", engine, "--key", key, "--gate", "gate.json")
        assert said.status == 0, said.err
        statement = statement_in(trust.beside_of(engine), key)
        assert statement["subject"][0]["digest"]["sha256"] == trust.sha256_of(engine) != digest_of_engine(engine)
        assert statement["predicate"]["runDetails"]["byproducts"][0]["annotations"]["variant"] == "fp32@x"


def test_a_key_that_is_not_there_ends_the_run_before_it_begins(
    command: Command, tiny: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(options.KEY, "/no/such.key")
    said = command("build", plan)
    assert said.status == 2
    assert "TRTFORGE_SIGNING_KEY: /no/such.key does not exist" in said.err
    assert not (tiny / ".trtforge/build").exists()


def test_trust_of_a_plan_ends_with_its_run(
    command: Command, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a plan cannot trust anybody whom the environment does not, also where that was set after the start."""
    assert command("sign", "--new-key", tmp_path / "other.key").status == 0
    ours, other = key.with_suffix(".pub"), tmp_path / "other.pub"
    options.trust([other])
    assert os.environ[trust.TRUSTED] == str(other)
    options.trust([])
    assert trust.TRUSTED not in os.environ
    monkeypatch.setenv(trust.TRUSTED, str(ours))
    options.trust([])
    assert os.environ[trust.TRUSTED] == str(ours)
    with pytest.raises(ConfigError, match=r"\[sign\]: trusted names none of the keys in TRTFORGE_TRUSTED"):
        options.trust([other])
    assert os.environ[trust.TRUSTED] == str(ours)
    copy = tmp_path / "copy.pub"
    copy.write_bytes(ours.read_bytes())
    options.trust([other, copy])
    assert os.environ[trust.TRUSTED] == str(copy)
    options.trust([])
    assert os.environ[trust.TRUSTED] == str(ours)


@pytest.mark.parametrize("name", ["", "keys/gone.pub", "keys"])
def test_a_key_of_a_plan_that_is_none_ends_the_run_before_it_begins(
    name: str, command: Command, tiny: Path, plan: Path
) -> None:
    (tiny / "keys").mkdir()
    plan.write_text(plan.read_text() + f'\n[sign]\ntrusted = ["{name}"]\n')
    said = command("build", plan)
    assert said.status == 2
    assert "cannot be read" in said.err
    assert "a public key is expected" in said.err
    assert not (tiny / ".trtforge/build").exists()


def test_what_is_not_right_any_more_is_signed_again(
    command: Command, key: Path, tiny: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged signature, and one of the record of an earlier build that gave the same bytes."""
    monkeypatch.setenv(options.KEY, str(key))
    assert command("build", plan).status == 0
    files = sorted((tiny / ".trtforge/signatures").iterdir())
    engines = sorted((tiny / ".trtforge/build").glob("*/model.onnx"))
    files[0].write_text("no signature")
    files[1].write_text(files[1].read_text().replace('"sig": "', '"sig": "00'))
    assert command("build", plan).status == 0
    assert command("verify", *engines, "--trusted", key.with_suffix(".pub")).status == 0
    shutil.rmtree(tiny / ".trtforge/build")
    assert command("build", plan).status == 0
    assert sorted((tiny / ".trtforge/signatures").iterdir()) == files
    assert command("verify", *engines, "--trusted", key.with_suffix(".pub")).status == 0


def test_weights_beside_a_model_are_verified(
    command: Command, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = onnx.numpy_helper.from_array(np.arange(400, dtype=np.float32), "w")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[400] x) => (float[400] y) { y = Add (x, w) }'
    )
    model.graph.initializer.append(weights)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert command("sign", tmp_path / "net.onnx", "--key", key).status == 0
    monkeypatch.setenv(trust.TRUSTED, str(key.with_suffix(".pub")))
    assert command("verify", tmp_path / "net.onnx").status == 0
    trust.check_file(tmp_path / "net.onnx")
    (tmp_path / "net.data").write_bytes(bytes(1600))
    said = command("verify", tmp_path / "net.onnx")
    assert said.status == 5
    assert "net.onnx: its weights in net.data are not what was signed" in said.err
    with pytest.raises(NotTrusted, match=r"its weights in net\.data are not what was signed"):
        trust.check_file(tmp_path / "net.onnx")
