"""`lm doctor` where the command `lm` itself does not start."""

import argparse
import sys

from lm.launch.doctor import command


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m lm.launch.doctor")
  command.flags(parser)
  return command.run(parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
