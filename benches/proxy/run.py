#!/usr/bin/env python3
"""Gaitway beside nginx doing the same work, in one run, on this machine.

Starts one upstream nginx, Redis, an nginx worker for each rival and a Gaitway for each mode, all on
free loopback ports, and drives them in turn with wrk; every repetition visits every target, so a noisy
minute hurts all alike. Reports medians with their range: requests a second, CPU microseconds a request
(kernel included, from /proc schedstat, proxy process only), p50 and p99. Ratios are medians of
per-repetition ratios.

Needs: nginx with libnginx-mod-http-lua, lua-nginx-redis, lua-cjson, redis-server, wrk (Debian packages;
`make bench` installs them) and target/release/gaitway.
"""
import argparse, base64, hashlib, hmac, json, os, re, shutil, signal, socket, statistics, subprocess, sys
import tempfile, time, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SECRET = "a secret of the benchmark, thirty-two bytes and more"
CHILDREN = []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*command, **options):
    child = subprocess.Popen(command, **options)
    CHILDREN.append(child)
    return child


def wait_for(port):
    deadline = time.time() + 20
    while time.time() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


def page(size):
    head = "<!doctype html><html><head><meta charset=utf-8><title>page</title></head><body>"
    tail = "</body></html>"
    filling = "<p>The quick brown fox jumps over the lazy dog.</p>\n"
    body = filling * (size // len(filling) + 1)
    return (head + body)[: size - len(tail)] + tail


def token():
    encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    claims = {"iss": "bench", "sub": "alice", "sid": "s-1", "jti": "t-1", "exp": int(time.time()) + 86400}
    signed = encode(b'{"alg":"HS256","typ":"JWT"}') + "." + encode(json.dumps(claims).encode())
    return signed + "." + encode(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest())


NGINX = """
load_module /usr/share/nginx/modules/ndk_http_module.so;
load_module /usr/share/nginx/modules/ngx_http_lua_module.so;
worker_processes 1; daemon off; pid {dir}/{name}.pid; error_log {dir}/{name}.err error;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; types {{ text/html html; }}
  client_body_temp_path {dir}/tmp; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;
  uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp;
  lua_package_path "{lua}/?.lua;;";
  {http}
}}
"""
PASS = """proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Proto $scheme;"""
SUB = """proxy_set_header Accept-Encoding ""; sub_filter_once on;
  sub_filter '<head>' '<head><script src="/_gaitway/c.js" defer></script>';"""


def nginx(directory, name, http):
    path = f"{directory}/{name}.conf"
    with open(path, "w") as file:
        file.write(NGINX.format(dir=directory, name=name, http=http, lua=os.path.dirname(os.path.abspath(__file__))))
    return start("nginx", "-c", path, stderr=subprocess.DEVNULL)


def nginx_proxy(directory, name, upstream, locations):
    port = free_port()
    http = (f"upstream app {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}"
            f" server {{ listen 127.0.0.1:{port}; location / {{ {PASS} {locations} }} }}")
    child = nginx(directory, name, http)
    return port, child


def gaitway(directory, name, upstream, extra):
    port = free_port()
    config = f"{directory}/{name}.yaml"
    with open(config, "w") as file:
        file.write(f"upstream: http://127.0.0.1:{upstream}\nlisten: 127.0.0.1:{port}\n"
                   f"data: {directory}/{name}\nops:\n  listen: 127.0.0.1:0\nlog:\n  access: false\n{extra}")
    # One worker thread, as every nginx here has one worker.
    environment = dict(os.environ, TOKIO_WORKER_THREADS="1")
    log = open(f"{directory}/{name}.log", "w")
    child = start(f"{ROOT}/target/release/gaitway", "run", "--config", config, stderr=log, env=environment)
    return port, child


def pids(child):
    """The process and its workers."""
    found = [child.pid]
    children = f"/proc/{child.pid}/task/{child.pid}/children"
    with open(children) as file:
        found += [int(pid) for pid in file.read().split()]
    return found


def cpu_ns(child):
    total = 0
    for pid in pids(child):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
    return total


def rss_kib(child):
    total = 0
    for pid in pids(child):
        with open(f"/proc/{pid}/status") as file:
            total += int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))
    return total


def to_ms(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def drive(port, child, path, cookie, connections, seconds):
    before = cpu_ns(child)
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", "Accept: text/html", "-H",
         f"Cookie: session={cookie}", f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True).stdout
    used = cpu_ns(child) - before
    requests = int(re.search(r"(\d+) requests in", out).group(1))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    if failed or requests == 0:
        sys.exit(f"port {port} {path} failed:\n{out}")
    return {
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)),
        "cpu_us": used / 1e3 / requests,
        "p50_ms": to_ms(re.search(r"(?m)^\s+50%\s+(\S+)", out).group(1)),
        "p99_ms": to_ms(re.search(r"(?m)^\s+99%\s+(\S+)", out).group(1)),
    }


def check(port, path, cookie, injected):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}",
                                     headers={"Accept": "text/html", "Cookie": f"session={cookie}"})
    with urllib.request.urlopen(request) as answer:
        body = answer.read().decode()
    if ("/_gaitway/c.js" in body) != injected:
        sys.exit(f"port {port} {path}: the collector is {'missing' if injected else 'there'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    if not os.path.exists(f"{ROOT}/target/release/gaitway"):
        sys.exit("build first: cargo build --release -p gaitway")

    directory = tempfile.mkdtemp(prefix="gaitway-bench-")
    os.chmod(directory, 0o755)
    try:
        run(options, directory)
    finally:
        for child in reversed(CHILDREN):
            child.send_signal(signal.SIGTERM)
        for child in CHILDREN:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
        shutil.rmtree(directory, ignore_errors=True)


def run(options, directory):
    os.makedirs(f"{directory}/www"), os.makedirs(f"{directory}/tmp")
    pages = {"/1k.html": 1024, "/50k.html": 50 * 1024}
    for path, size in pages.items():
        with open(f"{directory}/www{path}", "w") as file:
            file.write(page(size))
    with open(f"{directory}/secret", "w") as file:
        file.write(SECRET)
    upstream = free_port()
    nginx(directory, "upstream", f"server {{ listen 127.0.0.1:{upstream}; root {directory}/www; }}")
    redis_port = free_port()
    start("redis-server", "--port", str(redis_port), "--save", "", "--appendonly", "no", stdout=subprocess.DEVNULL)
    wait_for(upstream), wait_for(redis_port)

    lua = f"""access_by_lua_block {{ require("gate").check("{SECRET}", {redis_port}) }}"""
    jwt = f"identity:\n  jwt:\n    cookie: session\n    key_file: {directory}/secret\n    issuer: bench\n"
    redis = f"revocation:\n  redis: redis://127.0.0.1:{redis_port}\n"
    off = "collector:\n  inject: false\n"
    targets = {
        "nginx": (nginx_proxy(directory, "plain", upstream, ""), False),
        "nginx + sub_filter": (nginx_proxy(directory, "sub", upstream, SUB), True),
        "nginx + Lua JWT + Redis + sub_filter": (nginx_proxy(directory, "lua", upstream, lua + SUB), True),
        "gaitway, proxy only": (gaitway(directory, "g-plain", upstream, off), False),
        "gaitway + injection": (gaitway(directory, "g-inject", upstream, ""), True),
        "gaitway + JWT + Redis + injection": (gaitway(directory, "g-full", upstream, jwt + redis), True),
    }
    cookie = token()
    for name, ((port, _), injected) in targets.items():
        wait_for(port)
        for path in pages:
            check(port, path, cookie, injected)
    idle = {name: rss_kib(child) for name, ((_, child), _) in targets.items()}

    samples = {(name, path): [] for name in targets for path in pages}
    for name, ((port, child), _) in targets.items():
        drive(port, child, "/1k.html", cookie, options.connections, 1)  # warm-up
    for repetition in range(options.repetitions):
        for path in pages:
            for name, ((port, child), _) in targets.items():
                samples[name, path].append(drive(port, child, path, cookie, options.connections, options.seconds))
        print(f"repetition {repetition + 1} of {options.repetitions} done", file=sys.stderr)

    figures = {}
    for path in pages:
        print(f"\n{path}, {options.connections} connections, one worker each, "
              f"{options.repetitions} × {options.seconds} s, median [min..max]\n")
        print("| target | requests/s | CPU µs/request | p50 ms | p99 ms |\n|---|---|---|---|---|")
        for name in targets:
            rows = samples[name, path]
            cell = lambda key, digits: "{:.{d}f} [{:.{d}f}..{:.{d}f}]".format(
                statistics.median(r[key] for r in rows), min(r[key] for r in rows), max(r[key] for r in rows), d=digits)
            print(f"| {name} | {cell('rps', 0)} | {cell('cpu_us', 1)} | {cell('p50_ms', 2)} | {cell('p99_ms', 2)} |")
            figures[f"{name} {path}"] = rows
    print("\n| CPU a request, ratio | 1 KiB | 50 KiB |\n|---|---|---|")
    for ours, theirs in [
        ("gaitway + JWT + Redis + injection", "nginx + Lua JWT + Redis + sub_filter"),
        ("gaitway + JWT + Redis + injection", "nginx + sub_filter"),
        ("gaitway + injection", "nginx + sub_filter"),
        ("gaitway, proxy only", "nginx"),
    ]:
        cells = []
        for path in pages:
            ratios = [a["cpu_us"] / b["cpu_us"] for a, b in zip(samples[ours, path], samples[theirs, path])]
            cells.append(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]")
        print(f"| {ours} ÷ {theirs} | {cells[0]} | {cells[1]} |")
    print("\n| resident memory, idle | MiB |\n|---|---|")
    for name, kib in idle.items():
        print(f"| {name} | {kib / 1024:.1f} |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
