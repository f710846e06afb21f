"""Signatures of engines and bundles: whether a file is what somebody who is trusted made, byte for byte."""
