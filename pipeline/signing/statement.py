"""What a signature says of an engine or a bundle: an in-toto statement with SLSA's provenance.

in-toto Statement, version 1, and SLSA Provenance, version 1 (slsa.dev/spec/v1.0/provenance): the engine and its record
by their SHA-256; what it was made from, by digests; with which versions, on which kind of GPU; what its gate decided.
Paths of this machine, its name and its user are not in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from engines.errors import NotTrusted
from engines.plugin_library import plugins_in
from engines.signing.envelope import opened, public_half, sealed
from engines.signing.trust import (
    DEEPEST,
    ENDING,
    IN_STORE,
    PLUGIN,
    RECORD,
    STATEMENT_TYPE,
    beside_of,
    record_digest,
    sha256_of,
)
from engines.whole_file import write_whole
from pipeline.artifact import Artifact, digest_of_engine
from pipeline.errors import ConfigError
from pipeline.output import record_to_keep, share

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:trtforge:build:1"


def statement_of(file: Path, gate: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The statement on an engine with the record and the recipe beside it, or on another file.

    Args:
        file: the engine or the bundle.
        gate: gate.json of the gate that it passed.

    Raises:
        NotTrusted: the file cannot be read.
        ConfigError: beside it is the record of another engine, or the gate is of others.
    """
    sha256, record = sha256_of(file), record_to_keep(file)
    subjects = [{"name": file.name, "digest": {"sha256": sha256}}]
    subjects += [{"name": f.name, "digest": {"sha256": sha256_of(f)}} for f in Artifact(file).weight_files()]
    libraries = plugins_in(record)
    subjects += [{"name": f"{PLUGIN}{each['name']}", "digest": {"sha256": each["sha256"]}} for each in libraries]
    if record:
        subjects.append({"name": RECORD, "digest": {"sha256": record_digest(record)}})
    recipe = _recipe(file)
    details: dict[str, Any] = {
        "builder": {"id": "urn:trtforge", "version": dict(record.get("versions", {}))},
        "metadata": {"finishedOn": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")},
    }
    if gate is not None:
        details["byproducts"] = [{"name": "gate", "annotations": _decision(gate, file)}]
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "backend": record.get("backend", ""),
                    "precision": record.get("precision", ""),
                    "options": record.get("options", {}),
                },
                "resolvedDependencies": [
                    {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(_inputs(recipe).items())
                ],
            },
            "runDetails": details,
        },
    }


def sign_file(file: Path, key: Path, gate: Mapping[str, Any] | None = None) -> Path:
    """Sign an engine or a bundle; the signature's path is returned: beside the file, or in its store's folder for them.

    Raises:
        ConfigError: as ``statement_of``; or the signature cannot be written.
        NotTrusted, Unavailable: as ``sealed``.
    """
    store, statement = _store_of(file.resolve()), statement_of(file, gate)
    if store is None:
        return _written(beside_of(file), sealed(statement, key))
    return _written_in_store(store, statement, key)


def sign_in_store(engine: Path, key: Path, store: Path) -> Path:
    """Sign an engine of a store, in which its signature lies by itself: results are not changed.

    A signature that this key made of the same engine and record stays as it is.

    Raises:
        ConfigError, NotTrusted, Unavailable: as ``sign_file``.
    """
    statement = statement_of(engine)
    target = _place_in_store(store, statement)
    if target.is_file():
        with contextlib.suppress(NotTrusted):  # Of another key, damaged, or of another build's record.
            if opened(target, [public_half(key)]).statement.get("subject") == statement["subject"]:
                return target
    return _written_in_store(store, statement, key)


def _store_of(file: Path) -> Path | None:
    """The store of which the file is a result or a baseline's; no file comes beside those."""
    for parent in list(file.parents)[1:DEEPEST]:
        room = file.relative_to(parent).parts[0]
        is_result = len(file.relative_to(parent).parts) == 3 and file.with_name("result.json").is_file()
        if is_result or (room == "baselines" and file.parent.name == "engine"):
            return parent
    return None


def _place_in_store(store: Path, statement: Mapping[str, Any]) -> Path:
    """By the digest of the first subject, which is the engine."""
    return store / IN_STORE / f"{statement['subject'][0]['digest']['sha256']}{ENDING}"


def _written_in_store(store: Path, statement: Mapping[str, Any], key: Path) -> Path:
    target = _written(_place_in_store(store, statement), sealed(statement, key))
    share(target.parent, store)
    return target


def _written(target: Path, envelope: Mapping[str, Any]) -> Path:
    try:
        write_whole(target, json.dumps(envelope, indent=1).encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror}); make room, or write elsewhere") from error
    return target


def _recipe(file: Path) -> Mapping[str, Any]:
    """What an engine of a store was made from; empty for others."""
    recipe = file.with_name("recipe.json")
    return dict(json.loads(recipe.read_text(encoding="utf-8"))) if recipe.is_file() else {}


def _inputs(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Content digests of what was put in, by its place or the name that the recipe has for it."""
    entries = {f"input {place}": entry for place, entry in enumerate(recipe.get("inputs", ()))}
    entries |= recipe.get("named_inputs", {})
    return {name: entry["digest"] for name, entry in entries.items() if isinstance(entry, dict) and "digest" in entry}


def _decision(gate: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What the gate decided of this very engine."""
    digest = digest_of_engine(file)
    mine = next((entry for entry in gate.get("engines", ()) if entry.get("digest") == digest), None)
    if mine is None:
        raise ConfigError(f"{file}: the gate is of other engines (none has its SHA-256); name its own gate.json")
    return {"outcome": gate.get("outcome", ""), "variant": mine.get("name", "")}
