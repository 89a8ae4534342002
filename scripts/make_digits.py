"""Make src/fgp_gpytorch/datasets/_digits/digits.npz: 400 instances of each digit of MNIST train.

    python scripts/make_digits.py --root DIR [--download]

DIR holds the complete MNIST as torchvision.datasets.MNIST(DIR) reads it; --download lets torchvision fetch
it. Running the script again writes the same bytes.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from torchvision.datasets import MNIST

from fgp_gpytorch.datasets._mnist_instances import draw_instances

OUTPUT = Path(__file__).parents[1] / "src/fgp_gpytorch/datasets/_digits/digits.npz"


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as np.savez_compressed does, but with a fixed time stamp."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the complete MNIST, as torchvision lays it out")
    parser.add_argument("--download", action="store_true", help="let torchvision download MNIST to the root")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    mnist = MNIST(arguments.root, train=True, download=arguments.download)
    drawn = [draw_instances(mnist.data.numpy(), mnist.targets.numpy(), digit) for digit in range(10)]
    write_npz(
        arguments.output,
        {
            "images": np.stack([d.images for d in drawn]),  # (10, 400, 28, 28) uint8
            "index": np.stack([d.positions for d in drawn]),  # (10, 400) int64
            "num_in_class": np.asarray([d.num_in_class for d in drawn], dtype=np.int64),  # (10,)
        },
    )
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
