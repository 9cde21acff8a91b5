"""`python -m raygrad` is `raygrad`."""

from raygrad.cli import main

if __name__ == "__main__":
    main()
