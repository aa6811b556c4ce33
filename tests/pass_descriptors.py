"""`pass_descriptors.py NAMES NUMBERS COMMAND…`: become COMMAND with these descriptors from 3 on: sd_listen_fds(3)."""

import os
import sys

FIRST_DESCRIPTOR = 3
HIGH = 500  # out of the way while the first numbers are taken


def main(names: str, numbers: str, *command: str) -> None:
    high = [os.dup2(int(number), HIGH + index) for index, number in enumerate(numbers.split(","))]
    for index, number in enumerate(high):
        os.dup2(number, FIRST_DESCRIPTOR + index)
    os.closerange(FIRST_DESCRIPTOR + len(high), HIGH + len(high))
    passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
    os.execve(command[0], command, os.environ | passed)


if __name__ == "__main__":
    main(*sys.argv[1:])
