"""What leaves the site when somebody asks for help."""

import argparse
import zipfile
from pathlib import Path

from node import support
from node.audit import Audit, AuditEvent
from node.ledger import Ledger, ReceivedInstance
from node.sitekey import site_key

STUDY = "1.2.840.113619.2.99"
SITE = """
[node]
data_dir = "{data_dir}"

[[peers]]
name = "archive"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
dicomweb_url = "https://pacs.example/dicom-web"
user = "reader-of-results"
password_file = "/etc/flairnode/archive.password"

[engine]
database_url = "postgresql://flairnode:s3cret@db/flairnode"

[notify]
mail_to = ["dr.jones@hospital.example"]
mail_from = "node@hospital.example"
smtp_host = "mail"
"""


def test_no_name_no_uid_and_no_secret_is_in_it_but_what_helps_is(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    config = tmp_path / "site.toml"
    config.write_text(SITE.format(data_dir=data_dir), encoding="utf-8")
    with Ledger(data_dir / "intake.sqlite") as ledger:
        ledger.record(
            ReceivedInstance(STUDY, f"{STUDY}.1", f"{STUDY}.1.1", "1.2", "d", Path("p"), "MR1")
        )
        with ledger._transaction() as db:
            db.execute(
                "UPDATE series SET state = 'failed', reason = 'internal-error',"
                " explanation = 'Jones^Mary'"
            )
    Audit(data_dir / "audit", site_key(data_dir)).append(AuditEvent.RECEIVED, study=STUDY)
    output = tmp_path / "support.zip"
    assert support.run(argparse.Namespace(config=config, output=output)) == 0
    assert output.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(output) as bundle:
        text = "\n".join(bundle.read(name).decode() for name in bundle.namelist())
    for secret in (STUDY, "Jones", "s3cret", "reader-of-results", "archive.password", "dr.jones"):
        assert secret not in text, secret
    for helpful in ("internal-error", '"series.failed": 1', "pynetdicom", '"lines": 1', "archive"):
        assert helpful in text, helpful
