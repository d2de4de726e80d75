"""`python -m lundprobe_zarr`: the command line."""

from lundprobe_zarr.cli import main

if __name__ == "__main__":
    main()
