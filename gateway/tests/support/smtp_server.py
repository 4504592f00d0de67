#!/usr/bin/python3
"""A real SMTP server for the tests: prints its port, then every message it takes, as JSON lines.

It knows nothing of what is sent to it. A receiver's name makes it answer otherwise: `refuse550@` and
`later451@` get that reply code, `full552@` gets it after the message.
"""

import argparse
import asyncio
import email
import email.policy
import json
import logging
import re
import ssl
import sys
import warnings

from aiosmtpd.smtp import SMTP, AuthResult


class Handler:
    """Takes every message; answers with a reply code that the receiver's name asks for."""

    async def handle_RCPT(self, server, session, envelope, address, options):
        wanted = re.match(r"(?:refuse|later)(\d{3})@", address)
        if wanted:
            return f"{wanted[1]} 5.1.1 <{address}> is not wanted here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        for address in envelope.rcpt_tos:
            wanted = re.match(r"full(\d{3})@", address)
            if wanted:
                return f"{wanted[1]} no room for <{address}>"
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        parts = {part.get_content_type(): part.get_content() for part in message.walk() if not part.is_multipart()}
        say(
            {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "tls": server.transport.get_extra_info("sslcontext") is not None,
                "login": bool(session.authenticated),
                "headers": [[name, str(value)] for name, value in message.items()],
                "text": parts.get("text/plain"),
                "html": parts.get("text/html"),
                "parts": len(list(message.walk())),
                "longest_line": max(map(len, envelope.content.split(b"\r\n"))),
            }
        )
        return "250 taken"


def say(line):
    print(json.dumps(line), flush=True)


async def serve(options):
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
    login = options.login.encode() if options.login else None

    def authenticate(server, session, envelope, mechanism, data):
        # Not "handled" means: the server itself answers with 535.
        return AuthResult(success=login == data.login + b":" + data.password, handled=False)

    def protocol():
        return SMTP(
            Handler(),
            hostname="mail.test",
            enable_SMTPUTF8=False,
            tls_context=context if options.encryption == "starttls" else None,
            require_starttls=options.encryption == "starttls",
            auth_required=login is not None,
            auth_require_tls=options.encryption == "starttls",
            authenticator=authenticate,
            loop=asyncio.get_running_loop(),
        )

    wrapped = context if options.encryption == "tls" else None
    server = await asyncio.get_running_loop().create_server(
        protocol, "127.0.0.1", options.port, ssl=wrapped, reuse_address=True
    )
    say({"port": server.sockets[0].getsockname()[1]})
    # Ends with the test, however that ends: its end of the pipe closes.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


warnings.simplefilter("ignore")
logging.disable()
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--encryption", choices=["none", "starttls", "tls"], default="none")
parser.add_argument("--certificate")
parser.add_argument("--key")
parser.add_argument("--login", help="USER:PASSWORD that AUTH must give")
asyncio.run(serve(parser.parse_args()))
