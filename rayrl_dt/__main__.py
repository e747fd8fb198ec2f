"""`python -m rayrl_dt` is `rayrl-dt`."""

from rayrl_dt.cli.main import main

if __name__ == "__main__":
    main()
