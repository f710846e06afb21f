"""A user's function: found in the plan's folder or among the installed modules, and every way that can fail."""

from __future__ import annotations

import os.path
import sys
from pathlib import Path

import pytest

from calibration.data.user_function import load_function, local_file, module_file, module_sources
from calibration.errors import DataError


def test_a_function_of_the_plans_folder_with_a_sibling_it_imports(tmp_path: Path) -> None:
    (tmp_path / "sibling_a.py").write_text("VALUE = 41\n")
    (tmp_path / "mine_a.py").write_text("from sibling_a import VALUE\ndef answer():\n    return VALUE + 1\n")
    assert load_function("mine_a:answer", tmp_path)() == 42
    assert sys.path[0] != str(tmp_path)
    assert module_file("mine_a:answer", tmp_path) == tmp_path / "mine_a.py"


def test_what_a_function_imports_later_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "later_src.py").write_text("VALUE = 7\n")
    (tmp_path / "lazy_src.py").write_text("def answer():\n    import later_src\n    return later_src.VALUE\n")
    assert load_function("lazy_src:answer", tmp_path)() == 7


def test_the_sources_are_the_module_and_what_it_imports_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "pack_src").mkdir()
    (tmp_path / "pack_src" / "__init__.py").touch()
    (tmp_path / "pack_src" / "inner.py").write_text("from . import other\n")
    (tmp_path / "pack_src" / "other.py").touch()
    (tmp_path / "helper_src.py").write_text("import numpy\n")
    (tmp_path / "unused_src.py").touch()
    lines = "import helper_src\ndef answer():\n    from pack_src import inner\n    return 1\n"
    (tmp_path / "mine_src.py").write_text(lines)
    found = {file.relative_to(tmp_path).as_posix() for file in module_sources("mine_src:answer", tmp_path)}
    assert found == {"mine_src.py", "helper_src.py", "pack_src/__init__.py", "pack_src/inner.py", "pack_src/other.py"}


def test_a_module_in_a_package(tmp_path: Path) -> None:
    (tmp_path / "package_b").mkdir()
    (tmp_path / "package_b" / "__init__.py").touch()
    (tmp_path / "package_b" / "data.py").write_text("def batches():\n    return 'b'\n")
    assert load_function("package_b.data:batches", tmp_path)() == "b"


def test_an_installed_module(tmp_path: Path) -> None:
    assert load_function("os.path:join", tmp_path) is os.path.join


@pytest.mark.parametrize("spec", ["", "mine", "mine:", ":answer", "mine:a:b", "mine.py:answer()", "../mine:answer"])
def test_what_is_not_module_function(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match="is not of the form module:function"):
        load_function(spec, tmp_path)


@pytest.mark.parametrize("spec", ["no_such_module_c:batches", "no_such_package_c.data:batches", "json.none_such:load"])
def test_no_such_module(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match=rf"^{spec}: there is no module '{spec.split(':')[0]}' in {tmp_path}"):
        load_function(spec, tmp_path)


def test_no_such_function_offers_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine_d.py").write_text("def batches():\n    pass\nNUMBER = 3\n")
    with pytest.raises(DataError, match=r"has no 'batchs'; did you mean 'batches'\?"):
        load_function("mine_d:batchs", tmp_path)
    with pytest.raises(DataError, match=r"has no 'qqq'; correct the name"):
        load_function("mine_d:qqq", tmp_path)
    with pytest.raises(DataError, match="mine_d:NUMBER: is a int, a function is expected"):
        load_function("mine_d:NUMBER", tmp_path)


def test_a_module_that_raises_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine_e.py").write_text("1 / 0\n")
    with pytest.raises(
        DataError, match=r"mine_e:f: the module raised ZeroDivisionError .*\(division by zero\)"
    ) as caught:
        load_function("mine_e:f", tmp_path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.__cause__.__traceback__ is not None


def test_a_missing_import_inside_the_module_is_not_called_a_missing_module(tmp_path: Path) -> None:
    (tmp_path / "mine_f.py").write_text("import no_such_dependency_f\n")
    with pytest.raises(DataError, match=r"the module raised ModuleNotFoundError .*no_such_dependency_f"):
        load_function("mine_f:batches", tmp_path)


def test_a_name_that_is_taken_is_an_error_not_another_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def loads():\n    return 'mine'\n")
    with pytest.raises(DataError, match=r"'json' is already the name of the module .*rename that file"):
        load_function("json:loads", tmp_path)


def test_a_module_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the module has no source file"):
        module_file("sys:intern", tmp_path)


def test_relative_imports_of_a_package_in_a_package_are_found(tmp_path: Path) -> None:
    inner = tmp_path / "outer_rel" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").touch()
    (inner / "mine.py").write_text("from .beside import K\nfrom ..above import L\ndef answer():\n    return K + L\n")
    (inner / "beside.py").write_text("K = 1\n")
    (inner.parent / "above.py").write_text("L = 2\n")
    found = {file.relative_to(tmp_path).as_posix() for file in module_sources("outer_rel.inner.mine:answer", tmp_path)}
    assert found >= {"outer_rel/inner/mine.py", "outer_rel/inner/beside.py", "outer_rel/above.py"}


def test_the_file_is_known_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine_k").mkdir()
    for name in ("mine_k/__init__.py", "mine_k/inner.py", "mine_l.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('was loaded')")
    for spec, file in (
        ("mine_k:f", "mine_k/__init__.py"),
        ("mine_k.inner:f", "mine_k/inner.py"),
        ("mine_l:f", "mine_l.py"),
        ("json:dumps", "json.py"),
    ):
        assert local_file(spec, tmp_path) == tmp_path / file
    for spec in ("mine_k.nothing:f", "mine_l.inner:f", "os.path:join"):
        assert local_file(spec, tmp_path) is None
