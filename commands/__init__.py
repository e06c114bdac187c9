"""The `flask ...` commands, one module for each subject: they parse arguments, call, and print.

Exit 0 done, 1 failed (one line on stderr, with the hint), 2 wrong use or settings. The last line of stdout is for
machines; long work shows a progress bar on a terminal and plain lines elsewhere. Decisions are made elsewhere.
"""

from commands import ledger, media, replay, token, worker
from commands.doctor import command as doctor_command

COMMANDS = (
    doctor_command.doctor,
    ledger.ledger,
    media.media,
    replay.replay,
    token.token,
    worker.worker,
)
