"""Training scripts as people write them with Accelerate and with timm, to compare train.py with.

Both do the work of the job in benchmarks/jobs.py: timm's model with random weights; the same numbers of training,
validation and test images; a random crop and flip; SGD with Nesterov momentum and cosine decay; validation and a
checkpoint after each epoch; the test images once at the end. Neither uses anything of this project.
"""
