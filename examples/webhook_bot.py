"""A bot that keeps mirrors up to date: the Hub tells it of pushes, it mirrors again what has changed.

    WEBHOOK_SECRET=... HF_TOKEN=... MIRRORS=mirrors.toml python webhook_bot.py

It mirrors every model of the list once when it starts (where nothing changed, that is a no-op), and then
whenever somebody pushes to the `main` of one of them; one at a time, so that one memory cap and one account's
rate limits hold. It reports in one discussion on each mirror. Whatever stops it, it continues where it was.

| variable | |
|---|---|
| WEBHOOK_SECRET | the secret that you gave the webhook; it refuses to start without one |
| HF_TOKEN | may write to the mirrors, and read the sources |
| MIRRORS | the list, as for `tensorport-hub mirror --from-file` (mirrors.toml) |
| QUEUE | where it notes what is still to do (queue.json) |
| RETRY_SECONDS | the first wait after a failure; each next one is twice as long (30) |
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

import gradio as gr
from huggingface_hub import HfApi, WebhookPayload, WebhooksServer

from tensorport_hub import Order, TensorportError, mirror_all, read_orders
from tensorport_hub.core.size import format_size
from tensorport_hub.ports import Event, Waiting, Warned
from tensorport_hub.results import Attempt

ATTEMPTS = 5
TITLE = "Mirror log"
log = logging.getLogger("webhook_bot")


class Queue:
    """Repositories that are to be mirrored again, each once; a file remembers them, and the one that runs."""

    def __init__(self, path: Path, everything: Iterable[str]) -> None:
        self._path, self._changed = path, threading.Condition()
        self.running: str | None = None
        known = dict.fromkeys(everything, 0.0)
        left = [repo for repo in self._read() if repo in known]
        self.waiting = dict.fromkeys(left, 0.0) | known  # repository -> when it is due
        self._write()

    def _read(self) -> list[str]:
        try:
            return [str(repo) for repo in json.loads(self._path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return []  # the first start; or a file that nobody can read: everything is mirrored anyway

    def _write(self) -> None:
        """All or nothing, whenever the power goes."""
        draft = self._path.with_name(self._path.name + ".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump([*([self.running] if self.running else []), *self.waiting], file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)

    def add(self, repo: str, seconds: float = 0.0) -> None:
        """Have it mirrored, after a while; one that waits already waits no longer than before."""
        with self._changed:
            self.waiting[repo] = min(monotonic() + seconds, self.waiting.get(repo, float("inf")))
            self._write()
            self._changed.notify()

    def take(self) -> str:
        """Wait for the next one that is due; it runs until `done`."""
        with self._changed:
            while True:
                repo = min(self.waiting, key=lambda r: self.waiting[r], default=None)
                seconds = None if repo is None else self.waiting[repo] - monotonic()
                if repo is not None and seconds is not None and seconds <= 0:
                    del self.waiting[repo]
                    self.running = repo
                    return repo
                self._changed.wait(seconds)

    def done(self) -> None:
        with self._changed:
            self.running = None
            self._write()


class Bot:
    """The list, the queue, and what is done about them."""

    def __init__(self, orders: Iterable[Order], queue: Path, retry_seconds: float) -> None:
        self.orders: dict[str, list[Order]] = {}
        for order in orders:
            self.orders.setdefault((order.follows or order.source).lower(), []).append(order)
        self.queue = Queue(queue, self.orders)
        self._retry_seconds = retry_seconds
        self._failures: dict[str, int] = {}
        self._api = HfApi()

    def hear(self, payload: WebhookPayload) -> bool:
        """Whether a webhook concerns us: a push to the `main` of a model that we follow."""
        name, refs = payload.repo.name.lower(), [ref.ref for ref in payload.updatedRefs or []]
        ours = payload.repo.type == "model" and any(order.follows for order in self.orders.get(name, []))
        if not ours or not payload.event.scope.startswith("repo") or "refs/heads/main" not in refs:
            return False
        self.queue.add(name)
        return True

    def run(self) -> None:
        """Mirror what is due, one after another, until a signal comes."""
        while True:
            repo = self.queue.take()
            log.info("mirroring %s", repo)
            try:
                for attempt in mirror_all(self.orders[repo], on_event=_tell).attempts:
                    self._settle(repo, attempt)
            except Exception:  # a fault of ours on one model must not end the others
                log.exception("%s failed as nothing should", repo)
            self.queue.done()

    def _settle(self, repo: str, attempt: Attempt) -> None:
        """Report; try again later what may pass by itself."""
        key = f"{attempt.source} {attempt.destination}"
        if attempt.error is None:
            self._failures.pop(key, None)
            log.info("%s: %s", attempt.source, _line(attempt))
            if attempt.result is not None and attempt.result.changed:
                self._report(attempt)
            return
        log.warning("%s failed: %s", attempt.source, attempt.error.message)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if attempt.error.exit_code in (4, 5) and failures < ATTEMPTS:  # source or destination
            self.queue.add(repo, self._retry_seconds * 2 ** (failures - 1))
        else:
            self._failures.pop(key)
            self._report(attempt)

    def _report(self, attempt: Attempt) -> None:
        """A comment in the one discussion that we keep on the mirror; never the same twice in a row."""
        repo, text = attempt.destination, _line(attempt)
        if repo is None or repo.startswith(("/", ".", "~")):
            return
        try:
            me = self._api.whoami(cache=True)["name"]
            for found in self._api.get_repo_discussions(repo, author=me, discussion_status="open"):
                if found.title == TITLE and not found.is_pull_request:
                    events = self._api.get_discussion_details(repo, found.num).events
                    if getattr(events[-1], "content", None) != text:
                        self._api.comment_discussion(repo, found.num, text)
                    return
            self._api.create_discussion(repo, TITLE, description=text)
        except Exception as error:  # a mirror is a mirror, whether it could be talked about or not
            log.warning("no report on %s: %s", repo, error)


def _line(attempt: Attempt) -> str:
    if attempt.error is not None:
        hint = f" ({attempt.error.hint})" if attempt.error.hint else ""
        return f"`{attempt.source}` could not be mirrored: {attempt.error.message}{hint}"
    assert attempt.result is not None
    result, stats = attempt.result, attempt.result.stats
    if not result.changed:
        return f"`{attempt.source}` is mirrored as it is"
    revision = result.manifest["source"]["revision"][:12]
    kept = f", {stats.parts_kept} of them unchanged" if stats.parts_kept else ""
    return (
        f"Mirrored `{attempt.source}` at `{revision}`: {stats.parts} files, "
        f"{format_size(stats.bytes_published)}{kept}. {result.pr_url or result.commit_url or ''}"
    )


def _tell(event: Event) -> None:
    if isinstance(event, Warned):
        log.warning("%s", event.message)
    elif isinstance(event, Waiting) and event.seconds > 10:
        log.info("waiting %.0f s: %s", event.seconds, event.reason)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    secret = os.environ.get("WEBHOOK_SECRET", "").strip()
    if not secret:
        sys.exit("WEBHOOK_SECRET is not set: anybody could make this bot work")
    try:
        orders = read_orders(os.environ.get("MIRRORS", "mirrors.toml"))
    except TensorportError as error:
        sys.exit(f"{error.message}\nhint: {error.hint or 'see examples/README.md'}")
    retry_seconds = float(os.environ.get("RETRY_SECONDS", "30"))
    bot = Bot(orders, Path(os.environ.get("QUEUE", "queue.json")), retry_seconds)

    def page() -> str:
        return f"{'At work' if bot.queue.running else 'Idle'}; {len(bot.queue.waiting)} models wait."

    with gr.Blocks(title="Mirroring bot") as ui:
        gr.Markdown(page)
    server = WebhooksServer(ui, webhook_secret=secret)

    @server.add_webhook("/mirror")
    async def mirror(payload: WebhookPayload) -> dict[str, bool]:
        return {"queued": bot.hear(payload)}

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        server.launch(prevent_thread_lock=True, share=False)
        bot.run()
    except KeyboardInterrupt:
        log.info("stopped; the next start continues")
        logging.shutdown()
        os._exit(0)  # a thread may still wait for a silent server


if __name__ == "__main__":
    main()
