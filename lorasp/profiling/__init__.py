"""What a method costs: measured on the device that is here, simulated at the paper's scale."""
