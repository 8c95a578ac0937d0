"""`python -m healthingest`: the command, where its script is not on the path."""

from healthingest.cli import main

if __name__ == "__main__":
    main()
