"""What a run has made so far, by variant."""

from __future__ import annotations

from dataclasses import dataclass, field

from calibration.data.batches import Samples
from engines import backend
from engines.model_format import ModelFormat
from engines.precision import Precision, precision_named
from pipeline.artifact import (
    PRUNED,
    TRAINED,
    Engine,
    Findings,
    FrontierTimes,
    Mixture,
    ModelFile,
    OnnxModel,
    Outputs,
    Ranges,
    Source,
    SupportTable,
    TfliteModel,
    Timings,
    Tolerances,
    Tuned,
    Verdict,
)
from pipeline.bundle import Bundle
from pipeline.record import Remedy


@dataclass(frozen=True)
class Variant:
    """One network in one precision for one backend."""

    precision: Precision
    backend: str
    network: str = TRAINED

    @property
    def name(self) -> str:
        """As it stands in tables and reports: ``int8@onnxruntime``, of another network ``tuned+int8@onnxruntime``."""
        head = "" if self.network == TRAINED else f"{self.network}+"
        return f"{head}{self.precision.name}@{self.backend}"


def variant_named(name: str) -> Variant:
    """The inverse of ``Variant.name``.

    Raises:
        Unavailable: it has no such form, or there is no such precision.
    """
    head, _, runtime = name.partition("@")
    network, _, precision = head.rpartition("+")
    return Variant(precision_named(precision), runtime, network or TRAINED)


@dataclass
class Form:
    """A network in FP32 in another file format than ONNX, and what calibration found on that file."""

    fp32: ModelFile
    ranges: Ranges | None = None


@dataclass
class Network:
    """A network in FP32, and what calibration found of it. Training and pruning make further ones of the first."""

    fp32: OnnxModel
    ranges: Ranges | None = None
    forms: dict[ModelFormat, Form] = field(default_factory=dict)
    """The same network in the other formats that backends take: its tensors have other names there, so other ranges."""
    quantized: OnnxModel | None = None
    """The network as it came, where it came quantized: INT8 is made of it, and nothing is calibrated for that."""
    as_exported: OnnxModel | None = None
    """FP32 as `export` wrote it, where its channels were scaled after that."""
    placed: dict[str, Network] = field(default_factory=dict)
    """Of the tuned network, by the placement of INT8 that it was trained for: other weights and ranges for each."""

    def all_forms(self) -> list[Network | Form]:
        """Itself, which is in ONNX, and those."""
        return [self, *self.forms.values()]

    def form(self, wanted: ModelFormat) -> Network | Form:
        """What is written, quantized and built for backends that take that format."""
        return self if wanted == OnnxModel.FORMAT else self.forms[wanted]


@dataclass
class Results:
    """What a run has made so far, by variant where there are several."""

    source: Source
    networks: dict[str, Network]
    """By the name that a variant has; the trained one is always there."""
    calibration: Samples | None
    """None on a device that was given a bundle: the samples stayed behind."""
    evaluation: Samples
    tuning: Samples | None = None
    """What networks are trained on, where it is not the calibration samples."""
    packed: Bundle | None = None
    """Where the models come from a bundle."""
    source_verdict: Verdict | None = None
    """The exported model against the trained network itself."""
    reference: Outputs | None = None
    findings: Findings | None = None
    support: dict[str, SupportTable] = field(default_factory=dict)
    """By backend: whether it takes each node of the trained network."""
    models: dict[Variant, ModelFile] = field(default_factory=dict)
    tuned: dict[Variant, Tuned] = field(default_factory=dict)
    mixtures: dict[Variant, Mixture] = field(default_factory=dict)
    """Of INT8 variants that are to hold a bound: what is left in float for it."""
    frontiers: dict[Variant, FrontierTimes] = field(default_factory=dict)
    """Of those, where this machine can tell: how fast each set is that was judged."""
    tolerances: dict[Variant, Tolerances] = field(default_factory=dict)
    """Derived, for the variants that the plan holds to them."""
    engines: dict[Variant, Engine] = field(default_factory=dict)
    outputs: dict[Variant, Outputs] = field(default_factory=dict)
    verdicts: dict[Variant, Verdict] = field(default_factory=dict)
    remedies: dict[Variant, Remedy] = field(default_factory=dict)
    """Of INT8 variants that are out of bounds."""
    timings: Timings | None = None
    not_timed: dict[Variant, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trained_evaluation: Samples | None = None
    """The evaluation samples as the trained network takes them, where the exported one preprocesses by itself."""
    float_source: Source | None = None
    """The FP32 network behind one that came quantized, where the user has it."""

    def network_of(self, variant: Variant) -> Network:
        """What the variant is made of."""
        network = self.networks[variant.network]
        return network.placed.get(backend(variant.backend).PLACEMENT, network)

    @property
    def fp32(self) -> OnnxModel:
        """The trained network as ONNX, which answers and sizes are compared with."""
        return self.networks[TRAINED].fp32

    @property
    def exported(self) -> OnnxModel:
        """The trained network as ONNX, in the precision that it came in, as `export` wrote it."""
        network = self.networks[TRAINED]
        return network.quantized or network.as_exported or network.fp32

    @property
    def came_quantized(self) -> bool:
        """Whether the trained network came in INT8."""
        return self.networks[TRAINED].quantized is not None

    def export_notes(self) -> list[str]:
        """What the export says of what it made."""
        if not self.came_quantized:
            return self.fp32.notes()
        return [*self.exported.notes(), *(f"float_source: {note}" for note in self.fp32.notes())]

    @property
    def ranges(self) -> Ranges | None:
        """The trained network's."""
        return self.networks[TRAINED].ranges

    @property
    def reported_ranges(self) -> Ranges | None:
        """Those that a report shows: of the ONNX model, or where no variant is made of it, of what they are made of."""
        forms = self.networks[TRAINED].forms
        return self.ranges if self.onnx_models() or not forms else next(iter(forms.values())).ranges

    @property
    def pruned(self) -> OnnxModel | None:
        """The network with weights at zero; None where none was asked for."""
        return self.networks[PRUNED].fp32 if PRUNED in self.networks else None

    def training_notes(self) -> list[str]:
        """What pruning and tuning say of themselves; a bundle's are among its notes."""
        if self.packed is not None:
            return []
        pruned = [] if self.pruned is None else self.pruned.notes()
        tuned = [f"{variant.name}: {note}" for variant, made in self.tuned.items() for note in made.notes()]
        return [*pruned, *tuned]

    @property
    def converted(self) -> ModelFile | None:
        """The trained network as a float `.tflite` file; None where no backend of the plan takes one."""
        form = self.networks[TRAINED].forms.get(TfliteModel.FORMAT)
        return None if form is None else form.fp32

    def onnx_models(self) -> dict[Variant, OnnxModel]:
        """Those of ``models`` that are ONNX files, which more can be said of."""
        return {variant: model for variant, model in self.models.items() if isinstance(model, OnnxModel)}
