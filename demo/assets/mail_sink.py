"""A mail server for the demo: takes every mail on a free loopback port and prints it as a line of JSON.

The first line names the port. Delivers nothing anywhere.
"""

import asyncio
import email
import email.policy
import json
import sys

from aiosmtpd.smtp import SMTP


def say(**line):
    print(json.dumps(line), flush=True)


class Sink:
    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        body = mail.get_body(preferencelist=("plain", "html"))
        say(
            to=", ".join(envelope.rcpt_tos),
            subject=str(mail.get("subject", "")),
            text=body.get_content() if body else "",
        )
        return "250 taken"


async def main():
    host, port = sys.argv[1], int(sys.argv[2])
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(Sink(), hostname="mail.example"), host, port)
    say(port=server.sockets[0].getsockname()[1])
    await server.serve_forever()


asyncio.run(main())
