"""What the README claims about speed, as commands: `python -m benchmarks [pipeline training startup]`.

Every comparison is interleaved within one process or one loop, and every figure is a median, so that a busy machine
slows both sides alike. Results go to benchmarks/results/ with the hardware, versions and commit.
"""
