"""`python -m aligngpt`, for launchers and notebooks that know modules only."""

from aligngpt.cli import main

if __name__ == "__main__":
    main()
