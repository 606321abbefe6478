"""Protobuf messages: our subset of Envoy's ext_proc and our own records. See README.md."""
