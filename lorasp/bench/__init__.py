"""The suite's speed and size against what people use today: `lorasp bench step --json`."""

BENCHES = ("step", "states", "mmlu", "glue", "pipeline")
