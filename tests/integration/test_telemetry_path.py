"""From a batch job to a mailbox: Pushgateway, Prometheus, Alertmanager, mail; and our own way without them."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from groundplane.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from groundplane.core.secrets import Url
from groundplane.core.settings import Settings
from groundplane.telemetry.alerting import watcher_of
from groundplane.telemetry.alerts import Alerts, Notice
from groundplane.telemetry.delivery import Courier, LogChannel, MailChannel, WebhookChannel
from groundplane.telemetry.expressions import Level
from groundplane.telemetry.measures import Metrics
from groundplane.telemetry.metrics import new_registry
from groundplane.telemetry.prometheus import Prometheus, forget, push
from groundplane.telemetry.rules import Rule, rule_file
from groundplane.telemetry.scraping import RegistrySource, read_page
from groundplane.telemetry.series import Sample, labels_of
from groundplane.telemetry.watcher import Watcher
from groundplane.testing.clock import VirtualClock
from groundplane.testing.servers.instance import Instance
from groundplane.testing.servers.smtp import caught
from integration.dev_plane import groundplane, serving
from integration.server_lab import private
from leaks import eventually

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
_WAIT_S = 60.0
_RULE = Rule(
    name="nightly_failed",
    expression=Level(metric="nightly_failures"),
    threshold=0,
    severity="critical",
    summary="The nightly work failed.",
    runbook="docs/howto/runbooks/high_error_rate.md",
)


@pytest.fixture(scope="module")
def mail() -> Iterator[Instance]:
    with private("smtp", reject="nobody") as server:
        yield server


async def _becomes(server: Prometheus, query: str, value: float) -> None:
    async with asyncio.timeout(_WAIT_S):
        while list((await server.query(query)).values()) != [value]:
            await asyncio.sleep(0.1)


@pytest.mark.prometheus
@pytest.mark.pushgateway
@pytest.mark.alertmanager
@pytest.mark.smtp
@pytest.mark.slow
@pytest.mark.req("TEL-03.1", "TEL-03.2", "TEL-03.3", "TEL-03.4", "ALERT-02.3")
async def test_what_a_batch_job_pushed_is_asked_back_and_its_alert_is_mailed_and_resolved(
    mail: Instance, tmp_path: Path
) -> None:
    to = "path@groundplane.test"
    with (
        private("pushgateway") as gateway,
        private("alertmanager", smtp=f"127.0.0.1:{mail.port}", mail_to=to) as manager,
        private(
            "prometheus",
            targets=[f"127.0.0.1:{gateway.port}"],
            alertmanagers=[f"127.0.0.1:{manager.port}"],
            rules=rule_file([_RULE]),
        ) as server,
    ):
        prometheus, began = Prometheus(server.url), time.time()
        registry = new_registry()
        failures = Metrics(registry, prefix="nightly").gauge("failures", "Failures of the night.").of()
        failures.set(3)
        await push(gateway.url, registry, job="nightly", grouping={"shard": "a/b"})
        await _becomes(prometheus, 'nightly_failures{job="nightly", shard="a/b"}', 3)
        assert eventually(lambda: bool(caught(mail.data, to=to)), _WAIT_S)
        first = caught(mail.data, to=to)[0]
        assert "[FIRING:1]" in str(first["Subject"])
        assert "nightly_failed" in str(first["Subject"])

        page = tmp_path / "nightly.prom"  # the command does the same
        page.write_text("# TYPE nightly_failures gauge\nnightly_failures 0\n")
        pushed = groundplane(
            *("metrics", "push", page, "--to", gateway.url, "--job", "nightly", "--group", "shard=a/b", "--json"),
            folder=tmp_path,
        )
        assert json.loads(pushed.stdout) == {"job": "nightly", "samples": 1}
        await _becomes(prometheus, "nightly_failures", 0)
        assert eventually(lambda: any("[RESOLVED]" in str(one["Subject"]) for one in caught(mail.data, to=to)), _WAIT_S)
        ranged = await prometheus.query_range("nightly_failures", start_s=began, end_s=time.time() + 5, step_s=0.5)
        ((labels, points),) = ranged.items()
        assert dict(labels)["shard"] == "a/b"
        assert [value for value, _ in itertools.groupby(value for _, value in points)] == [3, 0]
        assert {round(b - a, 3) for (a, _), (b, _) in itertools.pairwise(points)} == {0.5}
        asked = groundplane("metrics", "query", "sum(", "--url", server.url, "--json", folder=tmp_path)
        assert (asked.returncode, json.loads(asked.stderr)["error"]["reason"]) == (2, "invalid_promql")
        with pytest.raises(InvalidArgument, match=r"query: is not understood: .*parse error"):
            await prometheus.query("sum(rate(")
        with pytest.raises(InvalidArgument, match="query: is not understood"):
            await prometheus.query_range("up{", start_s=began, end_s=began + 10, step_s=1)
        with pytest.raises(InvalidArgument, match=r"step_s: 0\.0001 gives more than 11000 points"):
            await prometheus.query_range("up", start_s=began, end_s=began + 10, step_s=0.0001)
        with pytest.raises(InvalidArgument, match=r"metrics: .* refused them"):
            await push(gateway.url, _twice(), job="other")
        await forget(gateway.url, job="nightly", grouping={"shard": "a/b"})
        # it answers 202: the group goes a moment later
        assert eventually(lambda: "nightly_failures" not in read_page(f"{gateway.url}/metrics"), _WAIT_S)


def _twice() -> CollectorRegistry:
    """A registry whose metric is of a kind that another group knows otherwise."""
    registry = new_registry()
    Metrics(registry, prefix="nightly").histogram("failures", "Now a histogram.").of().observe(1)
    return registry


async def test_servers_that_are_not_there_are_unavailable_by_address() -> None:
    with pytest.raises(Unavailable, match=r"'http://127\.0\.0\.1:1/.*' cannot be reached"):
        await Prometheus("http://127.0.0.1:1").query("up")
    with pytest.raises(Unavailable, match="is it started"):
        await push("http://127.0.0.1:1", new_registry(), job="x")
    with pytest.raises(InvalidArgument, match="url: 'ftp://x' is no http"):
        Prometheus("ftp://x")
    with pytest.raises(InvalidArgument, match="job: '' is empty"):
        await push("http://127.0.0.1:1", new_registry(), job="")


@contextmanager
def _webhook(*statuses: int) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """An HTTP server that answers with these statuses in turn, then 200, and the bodies that it accepted."""
    heard: list[dict[str, object]] = []
    waiting = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = waiting.pop(0) if waiting else 200
            if status == 200:
                heard.append(body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing to the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/hook", heard
        finally:
            server.shutdown()
            thread.join()


def _notices(*values: float) -> list[Notice]:
    """What is told when two shards have each of these values in turn."""
    alerts = Alerts([Rule(name="full", expression=Level(metric="q", by=["shard"]), threshold=5, severity="warning")])
    told = []
    for number, value in enumerate(values):
        alerts.record([Sample("q", labels_of({"shard": one}), value) for one in "ab"], 1e9 + number)
        told += alerts.evaluate(1e9 + number)
    return told


@pytest.mark.smtp
@pytest.mark.req("ALERT-02.1", "ALERT-02.2")
async def test_an_alert_goes_to_mail_webhook_and_log_in_groups_once_and_is_resolved(
    mail: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    to = "both@groundplane.test"
    registry, clock = new_registry(), VirtualClock()
    depth = Metrics(registry, prefix="acme").gauge("depth", "Depth.", ("shard",))
    rule = Rule(name="deep", expression=Level(metric="acme_depth", by=["shard"]), threshold=5, severity="critical")
    with _webhook() as (url, heard):
        channels = [
            LogChannel(),
            WebhookChannel(Url(url)),
            MailChannel(Url(f"smtp://127.0.0.1:{mail.port}"), sender="plane@groundplane.test", recipients=[to]),
        ]
        watcher = Watcher(RegistrySource(registry), Alerts([rule]), Courier(channels), clock=clock)
        for level in (1, 9, 10, 9, 2, 1):
            for shard in ("a", "b"):
                depth.of(shard=shard).set(level)
            await watcher.step()
            clock.advance(15)
    firing, resolved = caught(mail.data, to=to)
    assert str(firing["Subject"]) == "[FIRING:2] deep (critical)"
    assert str(resolved["Subject"]) == "[RESOLVED:2] deep (critical)"
    assert "shard=a: 9" in firing.get_content()
    assert [(one["status"], len(one["alerts"])) for one in heard] == [("firing", 2), ("resolved", 2)]  # type: ignore[arg-type]
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [(one["event"], one["level"], len(one["alerts"])) for one in logged if "rule" in one] == [
        ("alert_firing", "ERROR", 2),
        ("alert_resolved", "INFO", 2),
    ]


@pytest.mark.req("ALERT-02.1")
async def test_a_webhook_that_is_away_gets_the_notice_later_and_what_it_refuses_for_good_is_not_repeated() -> None:
    firing, resolved = _notices(9, 1)
    with _webhook(503, 200, 404) as (url, heard):
        courier = Courier([WebhookChannel(Url(url))])
        await courier.send([firing])
        assert (heard, courier.waiting()) == ([], 1)
        await courier.send([])
        assert ([one["status"] for one in heard], courier.waiting()) == (["firing"], 0)
        await courier.send([resolved])
        assert (len(heard), courier.waiting()) == (1, 0)
        assert (courier.delivered, courier.failed) == ({"webhook": 1}, {"webhook": 2})


async def test_what_resolved_while_a_channel_was_away_is_told_as_resolved() -> None:
    firing, resolved, again = _notices(9, 1, 9)
    with _webhook(503) as (url, heard):
        courier = Courier([WebhookChannel(Url(url))])
        await courier.send([firing])
        await courier.send([resolved])
    assert [one["status"] for one in heard] == ["resolved"]
    assert again.status == "firing"


@pytest.mark.smtp
async def test_mail_that_cannot_be_sent_says_why_and_hides_the_password(mail: Instance) -> None:
    (notice,) = _notices(9)

    def channel(url: str, to: str = "ops@groundplane.test") -> MailChannel:
        return MailChannel(Url(url), sender="plane@groundplane.test", recipients=[to])

    with pytest.raises(FailedPrecondition, match=r"mail_to: .* refused the recipients"):
        await channel(f"smtp://127.0.0.1:{mail.port}", "nobody@groundplane.test").send(notice)
    with pytest.raises(Unavailable, match=r"smtp: 'smtp://me:\*\*\*@127\.0\.0\.1:1' cannot be reached"):
        await channel("smtp://me:secret-word@127.0.0.1:1").send(notice)
    with pytest.raises((FailedPrecondition, Unavailable)) as refused:  # no login without TLS
        await channel(f"smtp://me:secret-word@127.0.0.1:{mail.port}").send(notice)
    assert "secret-word" not in str(refused.value)
    with pytest.raises(InvalidArgument, match=r"mail_to: 'x\\n' is no address"):
        channel("smtp://127.0.0.1", "x\n")
    with pytest.raises(InvalidArgument, match="smtp: 'http://x' is no smtp"):
        channel("http://x")


def test_channels_are_chosen_by_the_settings() -> None:
    settings = Settings(
        alerts_webhook=Url("https://hooks.example.com/T0/secret"),
        alerts_smtp=Url("smtp://mail.example.com"),
        alerts_mail_to=("ops@example.com",),
    )
    source = RegistrySource(new_registry())
    assert [one.name for one in watcher_of(settings, source).courier.channels] == ["log", "webhook", "mail"]
    assert [one.name for one in watcher_of(Settings(), source).courier.channels] == ["log"]
    with pytest.raises(InvalidArgument, match=r"alerts\.mail_to: is not set"):
        watcher_of(Settings(alerts_smtp=Url("smtp://x")), source)


@pytest.mark.slow
@pytest.mark.req("ALERT-02.1")
def test_the_command_watches_pages_and_tells_a_webhook_of_one_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(
        '[[rule]]\nname = "gone"\nseverity = "critical"\nthreshold = 1\ncompare = "below"\n'
        'expression = { kind = "level", metric = "up", by = ["instance"], fold = "min" }\n'
    )
    with _webhook() as (url, heard):
        settings = {"GROUNDPLANE_ALERTS_RULES": "rules.toml", "GROUNDPLANE_ALERTS_WEBHOOK": url}
        words = ("alerts", "watch", "--target", "worker=http://127.0.0.1:1/metrics", "--json")
        with serving(*words, folder=tmp_path, ready=False, **settings, GROUNDPLANE_ALERTS_INTERVAL="200ms") as running:
            ready = running.event("ready")
            assert (ready["targets"], ready["channels"]) == (["worker"], ["log", "webhook"])
            assert eventually(lambda: bool(heard), _WAIT_S)
            assert running.stop() == 0
    (told,) = heard
    assert told["status"] == "firing"
    assert [one["labels"] for one in told["alerts"]] == [  # type: ignore[attr-defined]
        {"alertname": "gone", "severity": "critical", "instance": "worker"}
    ]
