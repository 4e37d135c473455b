"""What a scale will cost before it runs: memory, GPUs, hours, disk, downloads, licences."""
