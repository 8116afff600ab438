"""Everything a site can set, with units in the names and the reason under each field.

One TOML file (`config.loader.load_settings`); `FLAIRNODE_SECTION__KEY` variables override it; an
unknown key is an error that names the key. Secrets come from files or variables, never from TOML.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from config.selection import SelectionSettings

__all__ = ["SelectionSettings"]  # beside what is defined here

AeTitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[^\\\x00-\x1f]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Protocol = Literal["c-store", "stow-rs", "orthanc-rest"]
CharacterSet = Literal[
    "ISO_IR 100",
    "ISO_IR 101",
    "ISO_IR 109",
    "ISO_IR 110",
    "ISO_IR 126",
    "ISO_IR 127",
    "ISO_IR 138",
    "ISO_IR 144",
    "ISO_IR 148",
    "ISO_IR 192",
]
"""PS3.3 C.12.1.1.2, those of one byte and UTF-8: what a PACS without code extensions reads."""
ResultKind = Literal["seg", "sr", "key-image", "pdf", "note", "probability"]
"""`note`: that a FLAIR was not analysed, and why."""
DEFAULT_KINDS: tuple[ResultKind, ...] = ("seg", "sr", "key-image", "pdf")
"""What every analysis makes, and what a destination takes unless it says otherwise.

Many archives store a Segmentation and a report without drawing either: with the pictures and the
PDF beside them a reader sees the result in any viewer, without anybody having configured it. A
probability map is made only if a destination asks for it: viewers do not draw it, and it is larger
than the series."""


def _web_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address begins with http:// or https:// and names a host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("an address holds no password, no query and no fragment")
    return url.rstrip("/")


WebAddress = Annotated[str, AfterValidator(_web_address)]


def _network(network: str) -> str:
    try:
        ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise ValueError(f"{network!r} is no network: write 192.0.2.7 or 192.0.2.0/24") from None
    return network


Network = Annotated[str, AfterValidator(_network)]
"""One address, or a range of them in CIDR notation."""


class Section(BaseModel):
    """A part of the settings: immutable, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSettings(Section):
    """Who we are and where our data lie."""

    ae_title: AeTitle = "FLAIRNODE"
    bind_host: str = "127.0.0.1"
    """Loopback by default: a listener open to the hospital is a decision, not an accident."""
    port: Port = 11112
    data_dir: Path = Path("/var/lib/flairnode")
    """A local disk. Never NFS or SMB: SQLite's locks and our fsyncs mean nothing there."""
    reserve_mb: Annotated[int, Field(ge=0)] = 2048
    """Below this much free disk a sender is told to come back later (0xA700). What was taken before
    still needs room for its results, the databases and the audit trail: some ten cases' worth."""
    reserve_margin_mb: Annotated[int, Field(ge=0)] | None = None
    """So much above the reserve must be free before senders are told yes again: without it a disk
    at its reserve would take every second slice of a study. None: a quarter of the reserve."""

    @property
    def reopens_mb(self) -> int:
        """So much must be free before senders are taken from again."""
        margin = self.reserve_margin_mb
        return self.reserve_mb + (self.reserve_mb // 4 if margin is None else margin)

    daily_self_test: bool = True
    """At start, once a day and after a change of the model, when no case is under way: the
    synthetic head with known lesions through the whole pipeline (20 s of one core)."""

    @property
    def packs_dir(self) -> Path:
        """Where this site's model packs are installed."""
        return self.data_dir / "packs"


class Peer(Section):
    """One DICOM application we speak with: over DIMSE, over the web, or both."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    ae_title: AeTitle | Literal[""] = ""
    """With host and port: all three, or none for a peer that is reached over the web alone."""
    host: str = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    dicomweb_url: WebAddress | None = None
    """Root of its DICOMweb services (QIDO-RS, WADO-RS, STOW-RS): `https://pacs/dicom-web`."""
    orthanc_url: WebAddress | None = None
    """An Orthanc's own REST API, such as `http://127.0.0.1:8042`."""
    user: str = ""
    """Of both web addresses. Its password comes from `password_file` or from the variable that
    `password_variable` names, and never from here."""
    password_file: Path | None = None
    """Readable by the node alone; one line. It wins over the variable."""
    token_file: Path | None = None
    """A bearer token for both web addresses, instead of a user: one line, read at each use."""
    ca_file: Path | None = None
    """Certificates to trust instead of the system's, for DICOM TLS and for both web addresses: a
    hospital's own authority, or the peer's very certificate."""
    verify_tls: bool = True
    """False takes any certificate, which is to say anybody who answers."""
    tls: bool = False
    """Speak DICOM TLS to host and port (PS3.15 B.9, B.10: TLS 1.2 or newer)."""
    tls_name: str = ""
    """The name in its certificate, where that is not `host`."""
    certificate_file: Path | None = None
    """What we show of ourselves if it asks. Without it, over DICOM TLS: what the listener shows
    (`security.tls`)."""
    key_file: Path | None = None
    """Of `certificate_file`; readable by the node alone."""
    addresses: tuple[Network, ...] = ()
    """Where it may call us from. Its AE title from anywhere else is refused. Empty: wherever
    `security.addresses` allows."""

    @model_validator(mode="after")
    def _says_how_it_is_reached(self) -> Self:
        dimse = {"ae_title": self.ae_title, "host": self.host, "port": self.port}
        absent = [key for key, value in dimse.items() if not value]
        web = self.dicomweb_url is not None or self.orthanc_url is not None
        if absent and (len(absent) < len(dimse) or not web):
            raise ValueError(f"peer {self.name!r}: {', '.join(absent)} missing")
        if self.user and not web:
            raise ValueError(f"peer {self.name!r}: a user, but no dicomweb_url and no orthanc_url")
        if self.password_file is not None and not self.user:
            raise ValueError(f"peer {self.name!r}: a password_file, but no user")
        if self.token_file is not None and (self.user or not web):
            raise ValueError(f"peer {self.name!r}: token_file goes with a web address and no user")
        if self.tls and absent:
            raise ValueError(f"peer {self.name!r}: tls needs ae_title, host and port")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError(f"peer {self.name!r}: certificate_file and key_file go together")
        return self

    @property
    def speaks_dimse(self) -> bool:
        """Can it be sent a C-ECHO?"""
        return bool(self.port)

    @property
    def password_variable(self) -> str:
        """The environment variable that may hold the password of `user`."""
        return f"FLAIRNODE_PASSWORD_{self.name.upper().replace('-', '_')}"

    def password(self) -> str:
        """Read anew at each use, so that a changed password needs no restart.

        Raises:
            OSError: The password file cannot be read.
            LookupError: There is a user, but neither file nor variable.
        """
        if not self.user:
            return ""
        if self.password_file is not None:
            return self.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        if self.password_variable not in os.environ:
            raise LookupError(f"neither password_file nor {self.password_variable} is set")
        return os.environ[self.password_variable]

    def token(self) -> str:
        """Read anew at each use; "" where there is none.

        Raises:
            OSError: The token file cannot be read.
        """
        if self.token_file is None:
            return ""
        return self.token_file.read_text(encoding="ascii").strip()


ChangeKind = Literal["NewInstance", "NewSeries", "StableSeries", "CompletedSeries"]


class Source(Section):
    """An Orthanc from which new studies are fetched: a second intake beside C-STORE."""

    peer: str
    """A peer with an `orthanc_url`."""
    follow: bool = True
    """Read its change feed. Without it the reconciling below finds everything, only later."""
    poll_s: Annotated[float, Field(gt=0)] = 2.0
    changes: tuple[ChangeKind, ...] = (
        "NewInstance",
        "NewSeries",
        "StableSeries",
        "CompletedSeries",
    )
    """Which changes make us look at a series. What is fetched is always what the series lacks
    here; Orthanc forgets stable events over a crash, so they alone are not enough."""
    reconcile_every_s: Annotated[float, Field(gt=0)] = 900.0
    """How often all recent studies are compared with what is here, as at each start."""
    look_back_days: Annotated[float, Field(gt=0)] = 14.0
    """What Orthanc received longer ago is left alone, unless we were away for longer."""
    parallel: Annotated[int, Field(ge=1, le=16)] = 4
    """Instances that are fetched at the same time."""


class Destination(Section):
    """Where results go: a peer, and what it takes."""

    peer: str
    protocol: Protocol = "c-store"
    """`stow-rs` needs the peer's `dicomweb_url`, `orthanc-rest` its `orthanc_url`."""
    kinds: tuple[ResultKind, ...] = (*DEFAULT_KINDS, "note")
    """Leave out what a PACS refuses: a refused object holds the delivery until somebody looks.
    `probability` is sent only if it is named here. Without `note` nothing tells a reader there why
    no result came."""
    research: bool = False
    """A pack of status `research` is sent only to destinations that say so."""
    confirm: Literal["query", "commitment", "none"] = "query"
    """`query`: delivered means that the peer lists every object (C-FIND, QIDO-RS or REST).
    `commitment`: that it took responsibility for them (Storage Commitment, PS3.4 J); its report
    comes to our listener. `none` marks it unconfirmed."""
    series_numbers: Mapping[ResultKind, Annotated[int, Field(ge=0, le=2**31 - 1)]] = {}
    """Series Number by kind, where a hanging protocol or a rule of the PACS wants another."""
    series_number_offset: int = 0
    """Added to the Series Number of every other kind."""
    series_description: Annotated[str, Field(max_length=64)] = "{description}"
    """Of what is sent there: `AI {description}`. Ours stays in it: it may say that it is research.
    """
    specific_character_set: CharacterSet | None = None
    """For a PACS that reads no UTF-8. What does not fit is refused there, not mangled."""

    @model_validator(mode="after")
    def _keeps_our_description(self) -> Self:
        rest = self.series_description.replace("{description}", "", 1)
        if rest == self.series_description or "{" in rest or "}" in rest or "\\" in rest:
            raise ValueError("series_description must hold {description} once, and no other braces")
        return self

    @property
    def changes_something(self) -> bool:
        """Is what is sent there another file than what was built?"""
        return bool(
            self.series_numbers
            or self.series_number_offset
            or self.specific_character_set is not None
            or self.series_description != "{description}"
        )


class CompletenessSettings(Section):
    """When is a study all there?"""

    quiet_period_s: Annotated[float, Field(gt=0)] = 30.0
    """DICOM has no end-of-study message. Longer than the longest pause of the sender."""
    query_peer: str | None = None
    """A peer whose C-FIND tells how many instances it holds. None: counts stay unconfirmed."""
    longest_wait_s: Annotated[float, Field(gt=0)] = 3600.0
    """After this long, a series that the peer says is larger is held (`incomplete`)."""


class BrainToolSettings(Section):
    """The program of others that `pipeline.brain` names.

    All but `command` and `timeout_s` enter the UIDs of the results.
    """

    command: Path | None = None
    """The program. None: it is looked for on PATH under its usual name."""
    weights: Path | None = None
    """HD-BET: the folder `.../hd-bet_params/release_2.0.0`; SynthStrip: FreeSurfer's model file.
    None: where the tool itself keeps them. Nothing is ever fetched."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """It is ended after this long. Less than `pipeline.time_limit_s`, which ends the worker."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """`-f` of FSL BET: smaller keeps more."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of HD-BET and SynthStrip."""


class PipelineSettings(Section):
    """How a series is analysed. Fields marked (result) enter the UIDs of the results."""

    model: str = "starter"
    """(result) A pack by name (inside flairnode) or by path."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    mirroring: Literal["auto", "on", "off"] = "auto"
    """(result) auto: on with a GPU, off on a CPU, where it doubles or quadruples the time."""
    brain: Literal["surface-refine", "fsl-bet", "hd-bet", "synthstrip"] = "surface-refine"
    """(result) The skull strip. All but the first are programs of others, which the site installs;
    one that is missing stops the node, and is never replaced by another. A pack that was trained
    with another extractor gives *review*."""
    brain_tool: BrainToolSettings = BrainToolSettings()
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the network; 0 takes what the machine has."""
    time_limit_s: Annotated[float, Field(gt=0)] = 900.0
    """A case that takes longer is ended with its worker. It is tried once more in a new one, then
    it is *failed (time-limit)*."""
    memory_limit_mb: Annotated[int, Field(ge=0)] = 6144
    """Of the worker, and of each program that it starts; 0 for none. A corrupt header can ask for
    any amount. As with the time: once more in a new worker, then *failed (memory-limit)*."""
    allow_cpu_fallback: bool = False
    """A GPU that is out of memory is tried once more with one slice at a time. After that, or when
    it is gone: true analyses on the CPU, with the mirroring of the GPU and in many times its time;
    false holds the case (`device-unavailable`), so that somebody sees to the GPU."""

    @model_validator(mode="after")
    def _tool_ends_before_the_worker(self) -> PipelineSettings:
        if self.brain != "surface-refine" and self.brain_tool.timeout_s >= self.time_limit_s:
            raise ValueError(
                f"brain_tool.timeout_s ({self.brain_tool.timeout_s:g}) must be less than"
                f" time_limit_s ({self.time_limit_s:g}): the worker would be ended first"
            )
        return self


class DeliverySettings(Section):
    """How results are sent and retried."""

    attempts: Annotated[int, Field(ge=1)] = 3
    """At first, in a row: they outlive a hiccup of 15 s. They keep one of the four places of their
    destination; all later attempts are single ones, and keep none while they wait."""
    first_pause_s: Annotated[float, Field(gt=0)] = 5.0
    backoff: Annotated[float, Field(ge=1)] = 2.0
    """Pause = first pause x backoff^n, a fifth more or less, so that many do not come at once."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    commitment_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """After this long without a report of Storage Commitment, the peer's own list decides."""
    retry_held_every_s: Annotated[float, Field(gt=0)] = 900.0
    """The longest pause. A destination that answers a C-ECHO again is sent to at once."""
    give_up_after_h: Annotated[float, Field(gt=0)] = 72.0
    """A weekend. Then the result is *held (undeliverable)* until somebody retries it. Counted while
    the node runs, by a clock that nobody can set."""


class RetentionSettings(Section):
    """How long received images and results stay here once they came to their end.

    Never deleted: what is held or failed, and what any destination has not confirmed.
    """

    keep_days: Annotated[float, Field(ge=0)] = 14.0
    """Images and results of what was delivered, skipped or not analysed."""
    least_days: Annotated[float, Field(ge=0)] = 1.0
    """When the disk is at its reserve the oldest of them go earlier, but never before this age:
    a day, so that what is looked at in the morning is still there in the afternoon."""
    unreported_days: Annotated[float, Field(ge=0)] = 90.0
    """What an archive lists, but was asked to commit to and never reported on, stays this long."""

    @model_validator(mode="after")
    def _least_is_less(self) -> RetentionSettings:
        if self.least_days > self.keep_days and "least_days" in self.model_fields_set:
            raise ValueError(
                f"least_days ({self.least_days:g}) is more than keep_days ({self.keep_days:g})"
            )
        return self


class EngineSettings(Section):
    """The durable workflow engine (DBOS)."""

    database_url: str | None = None
    """None: `data_dir/engine.sqlite`. A `postgresql://` address for several worker hosts."""
    poll_s: Annotated[float, Field(gt=0)] = 0.25
    workers: Annotated[int, Field(ge=0)] = 1
    """Worker processes the service starts here, one per device."""


class WebSettings(Section):
    """The operator page."""

    enabled: bool = False
    bind_host: str = "127.0.0.1"
    """Loopback by default. Open it to the hospital with a certificate, or behind a proxy."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8044
    """8042 is Orthanc's. 0: any that is free."""
    host_names: tuple[str, ...] = ()
    """Names that browsers may use for this machine, besides localhost. Another name is refused: a
    page elsewhere could otherwise point its own name here."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """PEM. Both: the page is served over TLS alone."""
    proxy_user_header: str = ""
    """Header in which a reverse proxy names whom it has signed in, such as `X-Remote-User`. The
    account of that name must exist here; it says the role."""
    proxy_addresses: tuple[str, ...] = ("127.0.0.1/32", "::1/128")
    """Networks from which that header is believed."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file are given together")
        if self.bind_host not in ("127.0.0.1", "::1", "localhost") and (
            self.certificate_file is None and not self.proxy_user_header
        ):
            raise ValueError(
                "bind_host is open to the network: give certificate_file and key_file, or a proxy's"
                " proxy_user_header"
            )
        return self


NoticeKind = Literal[
    "delivered", "failed", "held", "not-analysed", "silence", "disk", "peer", "self-test"
]


class NotifySettings(Section):
    """Who is told what, by web hook or e-mail. No notice names a patient or holds a UID."""

    kinds: tuple[NoticeKind, ...] = ("failed", "held", "silence", "disk", "peer", "self-test")
    """`delivered` and `not-analysed` are many on an ordinary day."""
    at_most_every_s: Annotated[float, Field(ge=10)] = 300.0
    """What happens in between is told together: a PACS that is down is one message, not hundreds.
    """
    silent_hours: Annotated[float, Field(gt=0)] = 24.0
    """Nothing received for so long is told once: routing may have been changed."""
    webhook_url: WebAddress | None = None
    webhook_secret_file: Path | None = None
    """With it each message carries `X-Flairnode-Signature: sha256=...`, an HMAC of its body."""
    mail_to: tuple[str, ...] = ()
    mail_from: str = ""
    smtp_host: str = ""
    smtp_port: Port = 587
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str = ""
    smtp_password_file: Path | None = None
    template_file: Path | None = None
    """A Jinja template of the text, instead of the one that ships (`node/notices.txt`)."""
    link: str = ""
    """Address of the operator page, as a reader of the message reaches it."""

    @model_validator(mode="after")
    def _mail_is_whole(self) -> Self:
        if self.mail_to and not (self.mail_from and self.smtp_host):
            raise ValueError("mail_to needs mail_from and smtp_host")
        if self.smtp_user and self.smtp_password_file is None:
            raise ValueError("smtp_user needs smtp_password_file")
        return self


class ListenerLimits(Section):
    """What one sender, or all of them, may take of the listener."""

    associations: Annotated[int, Field(ge=1)] = 128
    """Open at once, one thread each. The next one is told to come back (rejected, transient)."""
    associations_per_address: Annotated[int, Field(ge=1)] = 64
    """A PACS that opens too many leaves room for the scanner."""
    connections: Annotated[int, Field(ge=1)] = 128
    """That have not asked for an association yet. Beyond it the oldest of the address that holds
    most of them is closed, so a port scan keeps nobody out."""
    connections_per_address: Annotated[int, Field(ge=1)] = 32
    request_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """From connecting to the whole request, TLS included. A real sender needs milliseconds."""
    pdu_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """For one PDU once its first byte has come: 128 KiB at 18 kbit/s."""
    object_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """For one object, however many PDUs: 200 MB at 2 Mbit/s."""
    idle_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Between two messages: scanners keep an association open while they acquire."""
    longest_pdu_bytes: Annotated[int, Field(ge=4096, le=1_048_576)] = 131_072
    """Told to the sender, and checked before anything is allocated. DCMTK's largest; fewer and
    larger PDUs cost less than many small."""
    largest_object_mb: Annotated[int, Field(ge=1)] = 1024
    """A larger object is refused (0xC000): no MR series is one object of this size."""
    receiving_mb: Annotated[int, Field(ge=1)] = 2048
    """Memory of all objects that are being received. When it is used up a sender is told to come
    back later (0xA700)."""


class TlsSettings(Section):
    """DICOM TLS of the listener (PS3.15 B.9, B.10; BCP 195, RFC 9325)."""

    certificate_file: Path
    """PEM: ours, and the authorities between it and the root."""
    key_file: Path
    """PEM, without a passphrase, readable by the node alone: another mode stops the node."""
    ca_file: Path | None = None
    """Authorities of the senders' certificates. With it a sender must show one (mutual TLS)."""
    plain_port: Port | None = None
    """Also listen there without TLS, while senders are moved over one by one. `node.port` speaks
    TLS alone."""


class SecuritySettings(Section):
    """Who may send. Everybody else is refused at association."""

    calling_ae_titles: tuple[AeTitle, ...] = ()
    """Empty: the AE titles of the configured peers."""
    addresses: tuple[Network, ...] = ("127.0.0.1/32", "::1/128")
    """Networks a sender may come from, unless its peer names its own (`peers.addresses`)."""
    require_called_ae_title: bool = True
    tls: TlsSettings | None = None
    """None: the listener speaks plain DICOM, readable on the wire by whoever shares it."""
    limits: ListenerLimits = ListenerLimits()


class Settings(Section):
    """The whole file."""

    node: NodeSettings = NodeSettings()
    peers: tuple[Peer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    sources: tuple[Source, ...] = ()
    completeness: CompletenessSettings = CompletenessSettings()
    selection: SelectionSettings = SelectionSettings()
    pipeline: PipelineSettings = PipelineSettings()
    delivery: DeliverySettings = DeliverySettings()
    retention: RetentionSettings = RetentionSettings()
    engine: EngineSettings = EngineSettings()
    web: WebSettings = WebSettings()
    notify: NotifySettings = NotifySettings()
    security: SecuritySettings = SecuritySettings()

    @model_validator(mode="after")
    def _names_resolve(self) -> Settings:
        names = [peer.name for peer in self.peers]
        if len(set(names)) != len(names):
            raise ValueError(f"peers: names are doubled: {sorted(names)}")
        wanted = [("destinations", d.peer) for d in self.destinations]
        wanted += [("sources", source.peer) for source in self.sources]
        if self.completeness.query_peer is not None:
            wanted.append(("completeness.query_peer", self.completeness.query_peer))
        for where, name in wanted:
            if name not in names:
                raise ValueError(f"{where}: no peer is named {name!r}; peers are {names}")
        followed = [source.peer for source in self.sources]
        if len(set(followed)) != len(followed):
            raise ValueError(f"sources: peers are doubled: {sorted(followed)}")
        for name in followed:
            if self.peer(name).orthanc_url is None:
                raise ValueError(f"sources: peer {name!r} has no orthanc_url")
        return self

    @model_validator(mode="after")
    def _peers_see_the_certificate_of_the_listener(self) -> Settings:
        own = self.security.tls
        if own is not None:
            shown = {"certificate_file": own.certificate_file, "key_file": own.key_file}
            peers = tuple(
                peer.model_copy(update=shown)
                if peer.tls and peer.certificate_file is None
                else peer
                for peer in self.peers
            )
            object.__setattr__(self, "peers", peers)  # frozen from here on
        return self

    @model_validator(mode="after")
    def _peers_can_be_reached_as_said(self) -> Settings:
        asked = self.completeness.query_peer
        if asked is not None and not self.peer(asked).speaks_dimse:
            raise ValueError(
                f"completeness.query_peer: peer {asked!r} has no ae_title, host and port"
            )
        taken: set[str] = set()
        for destination in self.destinations:
            where = f"destinations: {destination.peer!r}"
            if destination.peer in taken:
                raise ValueError(f"{where} is named twice; one entry lists all its kinds")
            taken.add(destination.peer)
            self._check_protocol(destination, where)
            if destination.confirm == "commitment":
                self._check_commitment(destination, where)
        return self

    def _check_protocol(self, destination: Destination, where: str) -> None:
        peer = self.peer(destination.peer)
        needs = {
            "c-store": ("ae_title, host and port", peer.speaks_dimse),
            "stow-rs": ("dicomweb_url", peer.dicomweb_url is not None),
            "orthanc-rest": ("orthanc_url", peer.orthanc_url is not None),
        }
        what, given = needs[destination.protocol]
        if not given:
            raise ValueError(f"{where}: protocol {destination.protocol!r} needs the peer's {what}")

    def _check_commitment(self, destination: Destination, where: str) -> None:
        peer, titles = self.peer(destination.peer), self.security.calling_ae_titles
        if not peer.speaks_dimse:
            raise ValueError(f"{where}: commitment needs the peer's ae_title, host and port")
        if titles and peer.ae_title.strip() not in {title.strip() for title in titles}:
            raise ValueError(
                f"{where}: its report of commitment would be turned away; "
                f"security.calling_ae_titles must name {peer.ae_title!r}"
            )

    def peer(self, name: str) -> Peer:
        """The peer of that name; `Settings` made sure at load that it exists."""
        return next(peer for peer in self.peers if peer.name == name)

    def protocol_of(self, name: str) -> Protocol:
        """How that peer is spoken with: as its destination says, else over DIMSE."""
        spoken = (one.protocol for one in self.destinations if one.peer == name)
        return next(spoken, "c-store")
