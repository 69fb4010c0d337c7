"""`python -m prefcli`; also the entry that torchrun and accelerate start on every rank."""

from prefcli.cli import main

if __name__ == "__main__":
    main()
