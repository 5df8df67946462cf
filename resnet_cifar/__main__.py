"""`python -m resnet_cifar COMMAND ...` is `resnet-cifar COMMAND ...`."""

import sys

from resnet_cifar.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
