"""An agent that is reached by HTTP, with nothing but Python's standard library."""

import json, os, threading, time, urllib.error, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PLANE = os.environ.get("PARALLAX_API_URL", "http://localhost:3000")


def analyze(task: str, data: dict) -> dict:
    return {"value": f"Hello, {data['name']}!", "confidence": 0.9, "reasoning": "it is polite"}


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections

    def do_GET(self):  # /health
        self.say(200, {"status": "healthy"})

    def do_POST(self):  # /analyze
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.say(200, analyze(asked["task"], asked["data"]))
        except KeyError as missing:
            self.say(400, {"detail": f"data.{missing.args[0]} is missing"})

    def say(self, status: int, body: dict):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def tell(path: str, body: dict) -> dict:
    request = urllib.request.Request(PLANE + path, json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def stay_registered(agent: dict):
    lease = None
    while True:
        try:
            if lease is None:
                lease = tell("/api/agents", agent)
            else:
                tell(f"/api/agents/{agent['id']}/renew", {"leaseId": lease["leaseId"]})
        except urllib.error.HTTPError:
            lease = None  # it has run out: register again
        except OSError:
            pass  # the plane is away: it keeps us until our time to live is over
        time.sleep(lease["ttlSeconds"] / 3 if lease else 1)


server = ThreadingHTTPServer(("127.0.0.1", 0), Agent)
endpoint = f"http://127.0.0.1:{server.server_port}"
agent = {"id": "py-greeter", "endpoint": endpoint, "capabilities": ["greet"]}
threading.Thread(target=stay_registered, args=[agent], daemon=True).start()
server.serve_forever()
