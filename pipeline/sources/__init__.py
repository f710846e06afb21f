"""One file per kind of trained network that users bring: what it is, how it becomes ONNX, what runs it as it is.

Nothing of what is made of the ONNX model afterwards. A kind is a module with the names of ``contract.SourceKind``,
found by its file; the first that recognises a path takes it.
"""
