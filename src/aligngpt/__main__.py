"""`python -m aligngpt`, for launchers and notebooks that start programs as modules."""

from aligngpt.cli import main

if __name__ == "__main__":
    main()
