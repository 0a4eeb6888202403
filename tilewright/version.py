"""The version: one place that packaging and manifests read."""

VERSION = "0.1.0"
