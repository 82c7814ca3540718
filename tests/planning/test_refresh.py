"""``vramcalc prices refresh`` against a catalog served on loopback, by the real gpuhunt."""

from __future__ import annotations

import contextlib
import csv
import datetime
import http.server
import io
import os
import socket
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import Ran, process, run
from gpuhunt._internal.catalog import OFFLINE_PROVIDERS
from gpuhunt._internal.storage import CATALOG_V2_FIELDS

from vramcalc import tables
from vramcalc.errors import MissingExtra, OutputError, PriceError, UnknownName
from vramcalc.inputs import catalog
from vramcalc.planning import prices
from vramcalc.planning.refresh_prices import gpu_id_of, refresh

VERSION = "20261120-412"
TODAY = datetime.date(2026, 11, 22)
SHIPPED = prices.read(prices.shipped_path())
OURS = {"lambdalabs": "lambda"}


class Catalogs:
    """A folder laid out as gpuhunt's bucket is: ``PROVIDER/version`` and ``PROVIDER/VERSION/catalog.zip``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for provider in OFFLINE_PROVIDERS:
            self.put(provider, self.rows(provider))

    @staticmethod
    def rows(provider: str) -> list[dict[str, Any]]:
        """As many offers as the shipped table has, on demand and spot."""
        known = sum(o.provider == OURS.get(provider, provider) for o in SHIPPED)
        return [row(f"{provider}-{n}", 1 + n / 8, spot=n % 2 == 1) for n in range(max(2, known))]

    def put(self, provider: str, rows: list[dict[str, Any]], version: str = VERSION) -> Path:
        text = io.StringIO()
        writer = csv.DictWriter(text, CATALOG_V2_FIELDS)
        writer.writeheader()
        writer.writerows(rows)
        folder = self.folder / provider
        (folder / version).mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text(f"{version}\n")
        packed = folder / version / "catalog.zip"
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(f"{provider}.csv", text.getvalue())
        return packed


def row(instance: str, price: float, *, spot: bool = False, **changes: Any) -> dict[str, Any]:
    base = {
        "instance_name": instance, "location": "here", "price": price, "cpu": 8, "memory": 32, "gpu_count": 1,
        "gpu_name": "L4", "gpu_memory": 24.0, "spot": spot, "disk_size": "", "gpu_vendor": "nvidia", "flags": "",
        "cpu_arch": "x86", "provider_data": "{}",
    }  # fmt: skip
    return {**base, **changes}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogs]:
    """Catalogs behind a server on loopback, and a user with nothing in the cache."""
    found = Catalogs(tmp_path / "bucket")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(found.folder) as url:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", url)
        yield found


class serving:  # noqa: N801 - reads as a sentence
    """A folder over HTTP, as long as the block lasts."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *how: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def old_table() -> bytes:
    """What a user has from an earlier refresh."""
    path = prices.refreshed_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(prices.as_csv(o for o in SHIPPED if o.provider in ("aws", "azure", "gcp")), encoding="utf-8")
    return path.read_bytes()


def leftovers() -> list[str]:
    folder = prices.refreshed_path().parent
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# -- good --------------------------------------------------------------------------------------------------------------


def test_a_good_catalog_becomes_the_users_table(served: Catalogs) -> None:
    found = refresh(TODAY)
    assert found.prices == prices.current()
    assert found.fetched == {OURS.get(p, p): len(served.rows(p)) for p in OFFLINE_PROVIDERS}
    fetched = [o for o in found.prices.offers if o.kind == "gpuhunt"]
    assert len(fetched) == sum(found.fetched.values())
    assert {(o.date, o.checked_on, o.gpu_id) for o in fetched} == {("2026-11-20", TODAY, "l4")}
    assert {o.tier for o in fetched} == {"on_demand", "spot"}
    assert leftovers() == ["prices.csv"]


def test_offers_of_providers_that_are_not_published_are_carried_over_as_they_were(served: Catalogs) -> None:
    found = refresh(TODAY)
    kept = {o for o in SHIPPED if o.provider not in found.fetched}
    assert found.carried_over == len(kept) > 0
    assert {o for o in found.prices.offers if o.kind != "gpuhunt"} == kept


def test_refreshing_twice_changes_nothing(served: Catalogs) -> None:
    refresh(TODAY)
    before = prices.refreshed_path().read_bytes()
    refresh(TODAY)
    assert prices.refreshed_path().read_bytes() == before


def test_of_equal_offers_the_cheapest_stays(served: Catalogs) -> None:
    twice = [row("same", 3.0), row("same", 2.0), row("same", 2.5), row("other", 9.0)]
    served.put("oci", twice)
    found = refresh(TODAY)
    mine = [(o.instance, o.price_usd_hour) for o in found.prices.offers if o.provider == "oci"]
    assert sorted(mine) == [("other", 9.0), ("same", 2.0)]


def test_what_stands_for_no_known_board_is_left_out_and_counted(served: Catalogs) -> None:
    unclear = [
        row("cpu", 0.1, gpu_count=0, gpu_name="", gpu_memory="", gpu_vendor=""),
        row("some-a100", 2.0, gpu_name="A100", gpu_memory=80.0),
        row("a100-sxm4", 2.0, gpu_name="A100", gpu_memory=80.0),
        row("slice", 0.4, gpu_name="L4", gpu_memory=12.0),
        row("new", 9.0, gpu_name="Z9000", gpu_memory=512.0),
        row("tpu", 9.0, gpu_name="tpu-v5p", gpu_memory="", gpu_vendor="google"),
    ]
    served.put("nebius", [*served.rows("nebius"), *unclear])
    found = refresh(TODAY)
    assert dict(found.left_out) == {"A100 80 GB": 1, "L4 12 GB": 1, "Z9000 512 GB": 1, "v5p 0 GB": 1}
    assert [o.gpu_id for o in found.prices.offers if o.instance == "a100-sxm4"] == ["a100-sxm-80"]


@pytest.mark.parametrize("name", ["refresh", "refresh --json"])
def test_the_command_says_what_it_wrote_and_the_listing_uses_it(served: Catalogs, name: str) -> None:
    answer = run("prices", *name.split())
    assert (answer.status, answer.err) == (0, "")
    assert str(prices.refreshed_path()) in answer.out
    listing = run("prices", "--gpu", "l4", "--provider", "nebius").out
    assert "2026-11-20" in listing
    assert "gpuhunt" in listing


# -- every way of not being whole --------------------------------------------------------------------------------------


def empty(found: Catalogs) -> None:
    for provider in OFFLINE_PROVIDERS:
        found.put(provider, [])


def one_empty(found: Catalogs) -> None:
    found.put("gcp", [])


def without_gpus(found: Catalogs) -> None:
    found.put("gcp", [row("cpu", 0.1, gpu_count=0, gpu_name="", gpu_memory="", gpu_vendor="")] * 50)


def truncated(found: Catalogs) -> None:
    packed = found.folder / "gcp" / VERSION / "catalog.zip"
    packed.write_bytes(packed.read_bytes()[:-40])


def no_archive(found: Catalogs) -> None:
    (found.folder / "gcp" / VERSION / "catalog.zip").unlink()


def no_version(found: Catalogs) -> None:
    (found.folder / "gcp" / "version").unlink()


def not_an_archive(found: Catalogs) -> None:
    (found.folder / "gcp" / VERSION / "catalog.zip").write_text("<html>Log in to the network</html>")


def other_columns(found: Catalogs) -> None:
    with zipfile.ZipFile(found.folder / "gcp" / VERSION / "catalog.zip", "w") as archive:
        archive.writestr("gcp.csv", "a,b\n1,2\n")


def far_fewer(found: Catalogs) -> None:
    found.put("gcp", found.rows("gcp")[:3])


def undated(found: Catalogs) -> None:
    found.put("gcp", found.rows("gcp"), version="latest")


def of_tomorrow(found: Catalogs) -> None:
    found.put("gcp", found.rows("gcp"), version="20261123-413")


def nothing_there(found: Catalogs) -> None:
    for path in sorted(found.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


HALF = [
    (empty, "has 0 offers"),
    (one_empty, "the catalog of gcp has 0 offers"),
    (without_gpus, "the catalog of gcp has 0 offers"),
    (truncated, "no catalog of gcp (File is not a zip file)"),
    (no_archive, "no catalog of gcp (HTTP Error 404"),
    (no_version, "no catalog of gcp (HTTP Error 404"),
    (not_an_archive, "no catalog of gcp (File is not a zip file)"),
    (other_columns, "the catalog of gcp has 0 offers, 22 before"),
    (far_fewer, "the catalog of gcp has 3 offers, 22 before"),
    (undated, "the catalog of gcp has no date in its version 'latest'"),
    (of_tomorrow, "the catalog of gcp is of 2026-11-23, which is not yet"),
    (nothing_there, "no catalog can be fetched (HTTP Error 404"),
]


@pytest.mark.parametrize(("spoil", "says"), HALF, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_whole_is_an_error_and_the_old_prices_stay(served: Catalogs, spoil: Any, says: str) -> None:
    before, path = old_table(), prices.refreshed_path()
    spoil(served)
    with pytest.raises(PriceError) as caught:
        refresh(TODAY)
    assert says in str(caught.value)
    assert "the old prices stay" in str(caught.value)
    assert path.read_bytes() == before
    assert leftovers() == ["prices.csv"]


@pytest.mark.parametrize("spoil", [truncated, one_empty])
def test_a_provider_can_be_gone_without_and_keeps_its_old_offers(served: Catalogs, spoil: Any) -> None:
    spoil(served)
    found = refresh(TODAY, without=["gcp"])
    old = {o for o in SHIPPED if o.provider == "gcp"}
    assert old == {o for o in found.prices.offers if o.provider == "gcp"}
    assert "gcp" not in found.fetched


def test_a_dead_server_is_an_error_and_the_old_prices_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        before = old_table()
        answer = run("prices", "refresh")
    assert (answer.status, answer.out) == (2, "")
    assert len(answer.err.splitlines()) == 1
    assert "no catalog can be fetched" in answer.err
    assert "Connection refused" in answer.err
    assert prices.refreshed_path().read_bytes() == before


def test_a_server_that_never_answers_is_waited_for_no_longer_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(PriceError, match=r"timed out after 0\.2 s"):
            refresh(TODAY, limit_s=0.2)
    assert socket.getdefaulttimeout() is None


class Dripping:
    """A server that answers with what it is given, and then with the same byte for ever, a hundred in a second."""

    def __init__(self, start: bytes, forever: bytes) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.start, self.forever, self.done = start, forever, threading.Event()
        self.threads = [threading.Thread(target=self._serve)]

    def __enter__(self) -> str:
        self.threads[0].start()
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def __exit__(self, *how: object) -> None:
        self.done.set()
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for thread in self.threads:
            thread.join()

    def _serve(self) -> None:
        while not self.done.is_set():
            try:
                asking, _ = self.server.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self._answer, args=(asking,)))
            self.threads[-1].start()

    def _answer(self, asking: socket.socket) -> None:
        with asking, contextlib.suppress(OSError):
            asking.recv(1 << 16)
            asking.sendall(self.start)
            while not self.done.wait(0.01):
                asking.sendall(self.forever)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("start", "forever"),
    [(HEAD + b"Content-Length: 1000\r\n\r\n", b"1"), (HEAD + b"\r\n", b"2"), (HEAD + b"X-Slow: ", b"y"), (b"", b"H")],
    ids=["a body of known length", "a body without end", "a header", "no HTTP"],
)
def test_a_server_that_drips_is_cut_off_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, forever: bytes
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = old_table()
    with Dripping(start, forever) as url:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", url)
        with pytest.raises(
            PriceError, match=r"no catalog can be fetched \(timed out after 0\.3 s\): the old prices stay"
        ):
            refresh(TODAY, limit_s=0.3)
    assert prices.refreshed_path().read_bytes() == before
    assert not [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]


def too_long(found: Catalogs) -> None:
    (found.folder / "gcp" / "version").write_text("2" * 2000)


def too_large(found: Catalogs) -> None:
    with (found.folder / "gcp" / VERSION / "catalog.zip").open("wb") as file:
        file.truncate(17 << 20)


def bomb(found: Catalogs) -> None:
    """A few kilobytes that stand for 65 MiB, which are not unpacked any further."""
    with zipfile.ZipFile(found.folder / "gcp" / VERSION / "catalog.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gcp.csv", b"0" * (65 << 20))


def deep(found: Catalogs) -> None:
    found.put("gcp", [row("deep", 1.0, provider_data="[" * 100_000)])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(too_long, "more than 1,024 bytes"), (too_large, "more than 16,777,216 bytes"),
     (bomb, "more than 67,108,864 bytes unpacked"), (deep, "recursion")],
)  # fmt: skip
def test_a_catalog_of_absurd_size_is_no_catalog(served: Catalogs, spoil: Any, says: str) -> None:
    before = old_table()
    spoil(served)
    with pytest.raises(
        PriceError, match=r"no catalog of gcp \(.*; try again later, or go ahead with --without gcp"
    ) as caught:
        refresh(TODAY)
    assert says in str(caught.value)
    assert prices.refreshed_path().read_bytes() == before


def test_nothing_is_logged_past_the_error(served: Catalogs, tmp_path: Path) -> None:
    truncated(served)
    answer = process("prices", "refresh")
    assert answer.status == 2
    assert len(answer.err.splitlines()) == 1, answer.err


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_table_that_cannot_be_written_is_an_error(served: Catalogs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        refresh(TODAY, path=tmp_path / "file" / "prices.csv")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_process_that_is_killed_while_writing_leaves_the_old_table(served: Catalogs, tmp_path: Path) -> None:
    """The new table takes the name at once: killed just before, the process leaves the old one whole."""
    before = old_table()
    script = (
        "import os, signal, datetime\n"
        "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from vramcalc.planning.refresh_prices import refresh\n"
        f"refresh(datetime.date({TODAY.year}, {TODAY.month}, {TODAY.day}))\n"
    )
    killed: Ran = process(python=("-c", script))
    assert killed.status == -9
    assert prices.refreshed_path().read_bytes() == before
    assert refresh(TODAY).prices == prices.current()


def test_without_gpuhunt_the_extra_is_named(served: Catalogs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gpuhunt", None)
    with pytest.raises(MissingExtra, match=r"gpuhunt is not installed: pip install '\.\[prices\]'"):
        refresh(TODAY)


def test_a_provider_that_is_not_published_cannot_be_gone_without(served: Catalogs) -> None:
    with pytest.raises(UnknownName, match="did you mean 'gcp'"):
        refresh(TODAY, without=["gpc"])


# -- which board a catalog means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "name", "memory", "instance", "gpu_id"),
    [
        ("aws", "A100", 40.0, "p4d.24xlarge", "a100-sxm-40"),
        ("aws", "A100", 80.0, "p4de.24xlarge", "a100-sxm-80"),
        ("aws", "H100", 80.0, "p5.48xlarge", "h100-sxm"),
        ("aws", "H200", 141.0, "p5en.48xlarge", "h200"),
        ("azure", "A100", 80.0, "Standard_NC24ads_A100_v4", "a100-pcie-80"),
        ("azure", "A100", 80.0, "Standard_ND96amsr_A100_v4", "a100-sxm-80"),
        ("azure", "H100NVL", 94.0, "Standard_NC40ads_H100_v5", "h100-nvl"),
        ("gcp", "A100", 40.0, "a2-highgpu-1g", "a100-sxm-40"),
        ("gcp", "A100", 80.0, "a2-ultragpu-1g", "a100-sxm-80"),
        ("lambda", "H100", 80.0, "gpu_1x_h100_pcie", "h100-pcie"),
        ("lambda", "H100", 80.0, "gpu_8x_h100_sxm5", "h100-sxm"),
        ("runpod", "A100", 80.0, "NVIDIA A100 80GB PCIe", "a100-pcie-80"),
        ("runpod", "H100", 80.0, "NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("verda", "A100", 80.0, "1A100.22V", "a100-sxm-80"),
        ("nebius", "A100", 80.0, "1A100.22V", None),
        ("cloudrift", "RTX4090", 24.0, "rtx49-8c", "rtx-4090"),
        ("aws", "A10", 24.0, "g5.xlarge", "a10"),
        ("aws", "A10G", 24.0, "g5.xlarge", "a10g"),
        ("aws", "L4", 3.0, "g6f.large", None),
        ("aws", "L4", None, "g6.large", None),
    ],
)
def test_boards_are_told_apart_or_left_open(
    provider: str, name: str, memory: float | None, instance: str, gpu_id: str | None
) -> None:
    assert gpu_id_of(provider, name, memory, instance) == gpu_id


def test_instances_of_the_shipped_table_mean_the_same_board_in_a_catalog() -> None:
    """Where a name of the shipped table decides, it decides as the table does."""
    by_gpu: dict[str, set[tuple[str, str]]] = {}
    for line in tables.read("price_gpus"):
        by_gpu.setdefault(line["gpu_id"], set()).add((line["gpu_name"], line["memory_gb"]))
    checked = 0
    for offer in SHIPPED:
        for name, memory in by_gpu.get(offer.gpu_id, ()):
            found = gpu_id_of(offer.provider, name, float(memory), offer.instance)
            assert found in (None, offer.gpu_id), offer.label
            checked += found is not None
    assert checked > 100


def test_every_row_is_of_a_board_of_that_memory() -> None:
    for line in tables.read("price_gpus"):
        assert float(catalog.gpu_row(line["gpu_id"])["memory_gb"]) == float(line["memory_gb"]), line["gpu_id"]


def test_the_cache_is_the_users() -> None:
    assert prices.refreshed_path().parts[-2:] == ("vramcalc", "prices.csv")
    assert not str(prices.refreshed_path()).startswith(os.fspath(tables.directory()))
