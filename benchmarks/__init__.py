"""What the README claims about speed, as commands: `python -m benchmarks [training jobs pipeline startup checkpoints]`.

What is compared is measured in turns and every figure is a median, so that a busy machine slows all sides alike; a
ratio is the median of the turns' ratios. benchmarks/results/bench-cpu.json or bench-gpu.json holds them, with the
hardware, the versions and the commit. `python -m benchmarks.gpu` is the whole check of a machine with a GPU.
"""
