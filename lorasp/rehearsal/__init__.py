"""The paper's configuration run for real on a CPU, against a stand-in for the Hugging Face hub."""
