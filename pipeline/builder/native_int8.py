"""What TensorRT's own INT8 calibrator is given: our ranges as a cache for the TensorRT at hand, or the samples."""

from __future__ import annotations

from functools import partial

from calibration.data.batches import Samples
from calibration.graph.external_data import model_from_file
from calibration.graph.tensor_digests import tensor_digests
from calibration.graph.watched_outputs import watchable
from calibration.ranges.foreign_tables import scales_from_ranges, scales_of_every_tensor
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.trt_cache import Cache, bytes_from_cache, header_for
from engines.contract import GivenBatches, GivenScales
from engines.nvinfer.calibrator import CacheKey
from pipeline.artifact import OnnxModel, Ranges
from pipeline.errors import ConfigError
from pipeline.machine.user_cache import user_cache


def scales_for_calibrator(
    model: OnnxModel, ranges: Ranges, version: str, *, of_every_tensor: bool
) -> tuple[GivenScales, tuple[str, ...]]:
    """Our ranges as the calibration cache that this TensorRT takes for its own, and sentences for the record.

    Args:
        model: the FP32 model, whose tensors the network has.
        ranges: found on it.
        version: of TensorRT, up to 10.
        of_every_tensor: whether a tensor without a scale is an error, as it is for DLA.

    Raises:
        DataError: the ranges are of another model or lack a tensor, or that version has no caches.
    """
    proto = model_from_file(model.path)
    record = ranges_from_folder(ranges.path)
    record.check_model(model.digest(), partial(tensor_digests, proto))
    scales, notes = scales_from_ranges(record)
    if of_every_tensor:
        scales = scales_of_every_tensor(scales, proto, [name for name in record.tensors if name not in scales])
    names = watchable(proto)
    if lacking := [name for name in names if name not in scales]:
        notes.append(
            f"{len(lacking)} of {len(names)} tensors, such as '{lacking[0]}', have no scale and stay in floating "
            'point; [calibrate] watch = "all" finds them'
        )
    cache = Cache(header_for(version, "EntropyCalibration2"), scales)
    return GivenScales(bytes_from_cache(cache)), tuple(notes)


def batches_for_calibrator(model: OnnxModel, samples: Samples, version: str, batch_size: int) -> GivenBatches:
    """The samples, and where TensorRT's cache for them is kept.

    Raises:
        ConfigError: the samples are no whole number of batches, of which TensorRT reads whole ones alone.
    """
    if samples.num_samples % batch_size:
        fitting = next(n for n in range(batch_size, 0, -1) if not samples.num_samples % n)
        raise ConfigError(
            f"[build] native_batch_size is {batch_size}, {samples.num_samples} calibration samples are not a "
            f"multiple of it; set it to {fitting}, or limit the samples"
        )
    key = CacheKey(model.digest(), samples.digest(), version, "EntropyCalibration2", batch_size)
    return GivenBatches(partial(samples.batches, batch_size), batch_size, key.path_in(user_cache() / "calibration"))
