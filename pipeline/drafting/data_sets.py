"""Which samples calibrate and which judge: by the names of folders and arrays, else one set in two folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calibration.data.array_files import SUFFIXES as ARRAY_SUFFIXES
from calibration.data.array_files import ArrayHeader, headers
from calibration.data.image_folder import SUFFIXES as IMAGE_SUFFIXES
from calibration.data.labels.of_pictures import BY_FOLDER
from calibration.data.source import DYNAMIC, FUNCTION, InputSpec
from pipeline.drafting.facts import DataSet, DataSets
from pipeline.errors import ConfigError

CALIBRATION_WORDS = ("calibration", "calib", "cal", "train", "training")
EVALUATION_WORDS = ("evaluation", "eval", "validation", "valid", "val", "test", "testing")
"""What folders and arrays of each are called, as whole words; the first that is there is taken."""
CSV_SUFFIX = ".csv"
ONE_FOLD, OTHER_FOLDS = "1/5", "2-5/5"
"""Of one set: a fifth calibrates, the rest judges."""
SPLIT = (
    f"one set of samples: fold {ONE_FOLD} calibrates and {OTHER_FOLDS} judges; if samples resemble each other, as "
    "frames of one video do, name two sets instead"
)


def data_sets(data: str, labels: str, specs: Sequence[InputSpec], folder: Path) -> DataSets:
    """The sets in a path, or of ``module:function``.

    Args:
        data: the path, or the function, as the user gave it.
        labels: a key, a CSV file, ``folders``, or empty.
        specs: what the network takes.
        folder: where the plan will lie; paths in it are relative to this.

    Raises:
        ConfigError: nothing is there, or nothing that could be samples.
        DataError: a file of arrays is damaged.
    """
    path = Path(data)
    if not path.exists():
        if FUNCTION.fullmatch(data):
            return DataSets(DataSet(data, fold=ONE_FOLD), DataSet(data, fold=OTHER_FOLDS), False, (SPLIT,))
        raise ConfigError(f"--data {data}: does not exist; give a folder, an .npz or .npy file, or module:function")
    if path.is_file():
        if path.suffix.lower() not in ARRAY_SUFFIXES:
            raise ConfigError(
                f"--data {data}: is a '{path.suffix}' file; give a folder, an .npz or .npy file, or module:function"
            )
        return _arrays((path, path), labels, specs, folder)
    return _folder(path, labels, specs, folder)


def _folder(path: Path, labels: str, specs: Sequence[InputSpec], folder: Path) -> DataSets:
    below = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    are_pictures = any(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
    array_files = [file for file in files if file.suffix.lower() in ARRAY_SUFFIXES]
    if not are_pictures and not array_files:
        raise ConfigError(f"--data {path}: holds neither pictures nor arrays (.npy, .npz); give a folder that does")
    if are_pictures and len(specs) > 1:
        raise ConfigError(
            f"--data {path}: holds pictures, but the network takes {', '.join(spec.name for spec in specs)}; write a "
            "function that yields batches of all of them, and give it as module:function"
        )
    calibration, evaluation = _named_sets(below)
    if not are_pictures and not calibration:
        return _arrays((array_files[0], path), labels, specs, folder)
    if calibration:
        note = f"the folders {calibration} and {evaluation} of {path.name}, by their names"
        judging = [] if are_pictures else [file for file in array_files if file.is_relative_to(path / evaluation)]
        arrays = [_arrays((file, path / evaluation), labels, specs, folder) for file in judging[:1]]
        inputs = arrays[0].evaluation.inputs if arrays else {}
        sets = [
            DataSet(path_in_plan(path / name, folder), inputs, _labels_of(path / name, labels, folder))
            for name in (calibration, evaluation)
        ]
        asks = _ask_for_labels(path / evaluation, labels, are_pictures)
        questions = arrays[0].questions if arrays else {}
        return DataSets(sets[0], sets[1], are_pictures, (note,), asks, questions)
    place, labels = path_in_plan(path, folder), _labels_of(path, labels, folder)
    sets = [DataSet(place, labels=labels, fold=fold) for fold in (ONE_FOLD, OTHER_FOLDS)]
    return DataSets(sets[0], sets[1], are_pictures, (SPLIT,), _ask_for_labels(path, labels, are_pictures))


def _labels_of(path: Path, labels: str, folder: Path) -> str:
    """As named; of CSV files the one that is called as the folder, where one lies beside the file that was named."""
    file = Path(labels)
    if file.suffix.lower() != CSV_SUFFIX:
        return labels if labels in ("", BY_FOLDER) else _path_of_labels(path, labels, folder)
    beside = file if file.is_file() else path.parent / file
    namesake = beside.with_name(path.name + CSV_SUFFIX)
    return path_in_plan(namesake if namesake.is_file() else beside, folder)


def _path_of_labels(path: Path, labels: str, folder: Path) -> str:
    """A file or folder of labels as it is to stand in the plan, from here or from where the samples lie; else a key."""
    places = [place for place in (Path(labels), path.parent / labels) if labels and place.exists()]
    return path_in_plan(places[0], folder) if places else labels


def _ask_for_labels(path: Path, labels: str, are_pictures: bool) -> tuple[str, ...]:
    below = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if labels or not are_pictures or len(below) < 2:
        return ()
    return (
        f'are the {len(below)} sub-folders of {path.name} the classes? Then labels = "{BY_FOLDER}" in both sets, '
        "and a metric",
    )


def _arrays(paths: tuple[Path, Path], labels: str, specs: Sequence[InputSpec], folder: Path) -> DataSets:
    """The arrays of one file, which may stand for a folder of such files, that fit the network's inputs."""
    path, whole = paths
    arrays, place = headers(path, str(path)), path_in_plan(whole, folder)
    labels = labels if labels in arrays else _path_of_labels(whole, labels, folder)
    if len(arrays) == 1 and len(specs) == 1:
        mapping = {} if path.suffix.lower() == ".npy" else _mapping(specs[0].name, next(iter(arrays)))
        sets = [DataSet(place, mapping, labels, fold) for fold in (ONE_FOLD, OTHER_FOLDS)]
        return DataSets(sets[0], sets[1], False, (SPLIT,))
    if all(spec.name in arrays for spec in specs):
        sets = [DataSet(place, {}, labels, fold) for fold in (ONE_FOLD, OTHER_FOLDS)]
        return DataSets(sets[0], sets[1], False, (SPLIT,), _ask_for_key(arrays, specs, labels))
    fitting = {spec.name: [key for key, header in arrays.items() if _fits(header, spec)] for spec in specs}
    named = {name: _named_sets(keys) for name, keys in fitting.items()}
    keys_of_sets = [{name: sets[number] for name, sets in named.items()} for number in range(2)]
    if all(all(keys.values()) for keys in keys_of_sets):
        label_keys = [_label_key(labels, arrays, words) for words in (CALIBRATION_WORDS, EVALUATION_WORDS)]
        sets = [
            DataSet(place, {name: key for name, key in keys.items() if name != key}, label_key)
            for keys, label_key in zip(keys_of_sets, label_keys)
        ]
        note = f"the arrays of {path.name} whose names say so"
        return DataSets(sets[0], sets[1], False, (note,), _ask_for_key(arrays, specs, label_keys[1]))
    if all(len(keys) == 1 for keys in fitting.values()):
        only = {name: keys[0] for name, keys in fitting.items() if name != keys[0]}
        sets = [DataSet(place, only, labels, fold) for fold in (ONE_FOLD, OTHER_FOLDS)]
        return DataSets(sets[0], sets[1], False, (SPLIT,), _ask_for_key(arrays, specs, labels))
    lacking = next(name for name, keys in fitting.items() if len(keys) != 1)
    shapes = ", ".join(f"{key} {header.shape}" for key, header in arrays.items())
    question = (
        f"which array is the input '{lacking}'? {path.name} has {shapes}: write inputs = {{ {lacking} = \"KEY\" }}"
    )
    sets = [DataSet(place, {}, labels, fold) for fold in (ONE_FOLD, OTHER_FOLDS)]
    return DataSets(sets[0], sets[1], False, (f"{SPLIT}, without fold",), questions={"inputs": question})


def _mapping(name: str, key: str) -> dict[str, str]:
    return {} if name == key else {name: key}


def _fits(header: ArrayHeader, spec: InputSpec) -> bool:
    """Whether samples of such an array can be those of an input, channels last or first."""
    shape, wanted = header.shape[1:], spec.shape[1:]
    if len(header.shape) != len(spec.shape):
        return False
    return any(
        all(want in (DYNAMIC, have) for have, want in zip(order, wanted))
        for order in (shape, (*shape[-1:], *shape[:-1]))
    )


def _label_key(labels: str, arrays: Mapping[str, ArrayHeader], words: Sequence[str]) -> str:
    """The key of a set's labels: as it was named, or with the set's word behind it."""
    if not labels or labels in arrays:
        return labels
    return next((key for word in words for key in (f"{labels}_{word}", f"{word}_{labels}") if key in arrays), labels)


def _ask_for_key(arrays: Mapping[str, ArrayHeader], specs: Sequence[InputSpec], labels: str) -> tuple[str, ...]:
    names = {spec.name for spec in specs}
    flat = [key for key, header in arrays.items() if len(header.shape) == 1 and key not in names]
    return (
        (f'are {" or ".join(flat)} the labels? Then labels = "KEY" in both sets, and a metric',)
        if flat and not labels
        else ()
    )


def _named_sets(names: Sequence[str]) -> tuple[str, str]:
    """The names of what calibrates and of what judges; both empty where these are not two."""
    calibration, evaluation = _named(CALIBRATION_WORDS, names), _named(EVALUATION_WORDS, names)
    is_split = calibration and evaluation and calibration != evaluation
    return (calibration, evaluation) if is_split else ("", "")


def _named(words: Sequence[str], names: Sequence[str]) -> str:
    """The name with one of the words in it, as a whole word; of several the one with the first word; empty if none."""
    for word in words:
        for name in names:
            if word in name.lower().replace("-", "_").replace(".", "_").split("_"):
                return name
    return ""


def path_in_plan(path: Path, folder: Path) -> str:
    """As it is to stand in a plan in that folder."""
    absolute = path.resolve()
    return (
        absolute.relative_to(folder.resolve()).as_posix()
        if absolute.is_relative_to(folder.resolve())
        else str(absolute)
    )
