"""A receiver of signed webhooks: prints its port, then a line of JSON for every request it took.

The signature is checked here from the standard's text, not with the sender's code. Options:
--secret TEXT, and --answers STATUS,STATUS,… for the first requests; after that 204.
Ends when standard input closes.
"""

import argparse
import base64
import hashlib
import hmac
import http.server
import json
import os
import sys
import threading

options = argparse.ArgumentParser()
options.add_argument("--secret", required=True)
options.add_argument("--answers", default="")
options = options.parse_args()
answers = [int(status) for status in options.answers.split(",") if status]


def signed(headers, body):
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(options.secret.encode(), text, hashlib.sha256).digest()).decode()
    version, _, given = headers["webhook-signature"].partition(",")
    return version == "v1" and hmac.compare_digest(given, wanted)


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status = answers.pop(0) if answers else 204
        told = {
            "id": self.headers["webhook-id"],
            "signed": signed(self.headers, body),
            "type": self.headers["content-type"],
            "status": status,
            "body": json.loads(body),
        }
        print(json.dumps(told), flush=True)
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(json.dumps({"port": server.server_address[1]}), flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
