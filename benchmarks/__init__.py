"""The benchmarks behind the README's numbers: `python -m benchmarks [training jobs pipeline startup checkpoints]`.

Measurements that are compared are interleaved and every figure is a median, so that a busy machine slows all sides
alike; a ratio is the median of the rounds' ratios. benchmarks/results/bench-cpu.json or bench-gpu.json holds them,
with the hardware, the versions and the commit. `python -m benchmarks.gpu` checks a machine with a GPU.
"""
