"""`llama2cpp serve` beside another server with OpenAI's API: many requests at once, over HTTP, in turns.

    python tests/bench/server_speed.py MODEL --peer "NAME=COMMAND" [--peer ...] [--requests 16] [--prompt 512]
        [--tokens 128] [--threads 2] [--rounds 3] [--verbose]

COMMAND starts a server; {model}, {port}, {threads} and {rows} in it are filled in. For instance

    --peer "llama-server=llama-server -m {model} --port {port} -t {threads} -tb {threads} --parallel {rows} -c 12288"
    --peer "llama-cpp-python=python -m llama_cpp.server --model {model} --port {port} --n_threads {threads}
            --n_threads_batch {threads} --n_ctx 768 --interrupt_requests false"

Each server is started once. In a round it has the prompts at once, and ours has them one after another too; then it is
the next server's turn, and those that wait are stopped (SIGSTOP), so that they take no time. Prompts are random words
without a common beginning, other ones in each round, so that nothing that a server keeps helps it. Texts are greedy,
and a bias keeps the end token out, so that each has all its tokens. Columns: generated tokens a second from the first
request to the last answer; for each second of CPU time that the server has taken, which what else the machine does
disturbs less; the first of the decoding phase, from the last request's first token to the first answer's
end; and when the first token came (median, 95th percentile).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import llama2cpp

OURS = "llama2cpp serve"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@dataclass
class Text:
    """When the pieces of an answer came, in seconds since all began."""

    asked: float
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0


@dataclass
class Server:
    """One that runs, and stands still while it is not its turn."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    eos: Sequence[int]
    model: str = ""

    def cpu_seconds(self) -> float:
        """What it has computed so far, on all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self) -> None:
        for _ in range(600):
            try:
                listed = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).read()
                self.model = json.loads(listed)["data"][0]["id"]
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"{self.name} has ended with {self.process.returncode}") from None
                time.sleep(0.5)
        raise SystemExit(f"{self.name} does not answer")

    def ask(self, prompt: str, tokens: int, begin: float) -> Text:
        text = Text(time.perf_counter() - begin)
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "logit_bias": {str(id): -100 for id in self.eos},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{self.name}: {response.status} {response.read()!r:.300}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            choices = json.loads(line[6:]).get("choices")
            if not choices:
                continue
            text.pieces.append(time.perf_counter() - begin)
            if choices[0].get("finish_reason") not in (None, "length"):
                raise SystemExit(f"{self.name}: a text has ended with {choices[0]['finish_reason']!r}")
        text.ended = time.perf_counter() - begin
        connection.close()
        return text

    def run(self, prompts: Sequence[str], tokens: int, at_once: bool) -> list[Text]:
        """Let it answer all, alone on the machine."""
        self.process.send_signal(signal.SIGCONT)
        begin = time.perf_counter()
        found: list[Text] = []
        try:
            if not at_once:
                return [self.ask(prompt, tokens, begin) for prompt in prompts]
            threads = [
                threading.Thread(target=lambda prompt=prompt: found.append(self.ask(prompt, tokens, begin)))
                for prompt in prompts
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if len(found) != len(prompts):
                raise SystemExit(f"{self.name}: {len(found)} of {len(prompts)} requests were answered")
            return found
        finally:
            self.process.send_signal(signal.SIGSTOP)


def decoding(texts: Sequence[Text], tokens: int) -> float:
    """Tokens a second between the last one's first token and the first one's end; NaN if there is no such time."""
    begin, end = max(text.pieces[0] for text in texts), min(text.ended for text in texts)
    if end <= begin:
        return float("nan")
    # A piece may have several tokens (a character of several), and each text has as many in all.
    share = [sum(begin < at <= end for at in text.pieces) / len(text.pieces) for text in texts]
    return sum(share) * tokens / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--verbose", action="store_true", help="with what servers print on stderr")
    given = parser.parse_args()

    tokenizer = llama2cpp.load(given.model).tokenizer
    words = [
        piece
        for id in range(tokenizer.vocab_size)
        if (piece := tokenizer.decode([id])).startswith(" ") and piece[1:].isascii() and piece[1:].islower()
    ]
    random = np.random.default_rng(1)

    def prompts() -> list[str]:
        """Texts of exactly so many tokens, BOS and all."""
        made: list[str] = []
        while len(made) < given.requests:
            text = ""
            while len(tokenizer.encode(text)) < given.prompt:
                text += str(random.choice(words))
            if len(tokenizer.encode(text)) == given.prompt:
                made.append(text)
        return made

    commands = {
        OURS: f"{sys.executable} -m llama2cpp serve {{model}} --port {{port}} --threads {{threads}} --rows {{rows}}",
        **dict(peer.split("=", 1) for peer in given.peer),
    }
    servers = []
    log = sys.stderr if given.verbose else subprocess.DEVNULL
    for name, command in commands.items():
        port = free_port()
        filled = command.format(model=given.model, port=port, threads=given.threads, rows=given.requests)
        process = subprocess.Popen(shlex.split(filled), stdout=subprocess.DEVNULL, stderr=log)
        servers.append(Server(name, port, process, tokenizer.eos_ids))
    found: dict[str, list[tuple[float, float, float]]] = {}
    firsts: dict[str, list[float]] = {}
    try:
        for server in servers:
            server.wait()
            server.ask(prompts()[0][:100], 4, time.perf_counter())
            server.process.send_signal(signal.SIGSTOP)
        for _ in range(given.rounds):
            for server in servers:
                for at_once in (True, False) if server.name == OURS else (True,):
                    asked = prompts()
                    before = server.cpu_seconds()
                    texts = server.run(asked, given.tokens, at_once)
                    computed = given.requests * given.tokens / (server.cpu_seconds() - before)
                    whole = given.requests * given.tokens / max(text.ended for text in texts)
                    alone = [given.tokens * (1 - 1 / len(t.pieces)) / (t.ended - t.pieces[0]) for t in texts]
                    phase = decoding(texts, given.tokens) if at_once else statistics.median(alone)
                    name = server.name if at_once else f"{server.name}, one after another"
                    found.setdefault(name, []).append((whole, computed, phase))
                    firsts.setdefault(name, []).extend(text.pieces[0] - text.asked for text in texts)
                    print(
                        f"{name}: {whole:.1f} tok/s, {computed:.1f} a CPU second, decoding {phase:.1f}",
                        file=sys.stderr,
                        flush=True,
                    )
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGCONT)
            server.process.terminate()
    print("| | tok/s | ours, x | tokens a CPU second | ours, x | decoding, tok/s | first token: median | p95 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, rounds in found.items():
        whole, computed, phase = (statistics.median(column) for column in zip(*rounds, strict=True))
        times = []
        for i in range(2):
            ratios = [ours[i] / other[i] for ours, other in zip(found[OURS], rounds, strict=True)]
            times.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})")
        first = np.quantile(firsts[name], [0.5, 0.95])
        print(
            f"| {name} | {whole:.1f} | {times[0]} | {computed:.1f} | {times[1]} | {phase:.1f} | {first[0]:.1f} s | "
            f"{first[1]:.1f} s |"
        )


if __name__ == "__main__":
    main()
