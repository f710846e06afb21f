"""The part of Triton's model_config.proto that is written here, as protobuf's own messages, to read it back strictly.

Names, numbers and types of the fields are those of triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

F = descriptor_pb2.FieldDescriptorProto
KINDS = {
    "string": F.TYPE_STRING, "int32": F.TYPE_INT32, "int64": F.TYPE_INT64, "bool": F.TYPE_BOOL, "uint32": F.TYPE_UINT32,
}  # fmt: skip
MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    "ModelTensorReshape": [("shape", 1, "int64", True)],
    "ModelInput": [
        ("name", 1, "string", False), ("data_type", 2, "DataType", False), ("dims", 4, "int64", True),
        ("reshape", 5, "ModelTensorReshape", False), ("is_shape_tensor", 6, "bool", False),
    ],
    "ModelOutput": [
        ("name", 1, "string", False), ("data_type", 2, "DataType", False), ("dims", 3, "int64", True),
        ("reshape", 5, "ModelTensorReshape", False), ("label_filename", 4, "string", False),
    ],
    "ModelInstanceGroup": [("kind", 4, "Kind", False), ("count", 2, "int32", False), ("profile", 5, "string", True)],
    "Specific": [("versions", 1, "int64", True)],
    "ModelVersionPolicy": [("specific", 3, "Specific", False)],
    "CcModelFilenamesEntry": [("key", 1, "string", False), ("value", 2, "string", False)],
    "ModelConfig": [
        ("name", 1, "string", False), ("backend", 17, "string", False), ("max_batch_size", 4, "int32", False),
        ("input", 5, "ModelInput", True), ("output", 6, "ModelOutput", True),
        ("instance_group", 7, "ModelInstanceGroup", True), ("default_model_filename", 8, "string", False),
        ("cc_model_filenames", 9, "CcModelFilenamesEntry", True), ("version_policy", 3, "ModelVersionPolicy", False),
    ],
}  # fmt: skip
ENUMS = {
    "DataType": (
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}  # fmt: skip


def parsed(text: str) -> Any:
    """The message that a config.pbtxt means; an unknown field, or a value of another type, is an error."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL
            if kind in KINDS:
                message.field.add(name=field, number=number, type=KINDS[kind], label=label)
            else:
                type_number = F.TYPE_ENUM if kind in ENUMS else F.TYPE_MESSAGE
                message.field.add(
                    name=field, number=number, type=type_number, type_name=f".inference.{kind}", label=label
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, kind())
