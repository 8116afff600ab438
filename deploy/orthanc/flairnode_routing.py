"""Sends MR series to flairnode, and finds again what was lost over a crash. An Orthanc plugin.

In orthanc.json (package `orthanc-python`)::

    "Plugins": ["/usr/share/orthanc/plugins/libOrthancPython.so"],
    "PythonScript": "/etc/orthanc/flairnode_routing.py",
    "DicomModalities": {"flairnode": ["FLAIRNODE", "192.0.2.10", 11112]}

Orthanc's stable events live in memory and its jobs are not repeated. So a series counts as sent only
when its job succeeded, which is written to its metadata; at start, and every ten minutes, series of
the last days without that mark are sent. A series that is sent twice is analysed once.
"""

import json
import threading
from datetime import datetime, timedelta

import orthanc

NODE = "flairnode"
SENT = "4711"  # metadata of a series: how many instances the node has taken
EVERY_S = 600.0
LOOK_BACK_DAYS = 7
_lock = threading.Lock()
_timer = None


def _get(path):
    return json.loads(orthanc.RestApiGet(path))


def _taken(series):
    try:
        return int(orthanc.RestApiGet(f"/series/{series}/metadata/{SENT}"))
    except (orthanc.OrthancException, ValueError):
        return 0


def send(series):
    """Send a series that is not sent yet. True: the node has it."""
    with _lock:
        found = _get(f"/series/{series}")
        count = len(found["Instances"])
        if found["MainDicomTags"].get("Modality") != "MR" or _taken(series) >= count:
            return True
        try:
            orthanc.RestApiPost(
                f"/modalities/{NODE}/store",
                json.dumps({"Resources": [series], "Synchronous": True}),
            )
        except orthanc.OrthancException as error:
            orthanc.LogWarning(f"flairnode: a series was not taken and is sent again later: {error}")
            return False
        orthanc.RestApiPut(f"/series/{series}/metadata/{SENT}", str(count))
        return True


def reconcile():
    """Send what should have been sent, and look again later."""
    global _timer
    since = (datetime.now() - timedelta(days=LOOK_BACK_DAYS)).strftime("%Y%m%dT%H%M%S")
    try:
        for series in orthanc_series_since(since):
            if not send(series):
                break  # the node is not there: no use to knock for every series
    except Exception as error:  # a plugin must not take its Orthanc along
        orthanc.LogError(f"flairnode: {error}")
    _timer = threading.Timer(EVERY_S, reconcile)
    _timer.daemon = True
    _timer.start()


def orthanc_series_since(since):
    """Stable series that were stored lately, the newest first."""
    found = []
    first, page = 0, 200
    while True:
        series = _get(f"/series?expand&since={first}&limit={page}")
        found += [
            (one["LastUpdate"], one["ID"])
            for one in series
            if one.get("IsStable") and one.get("LastUpdate", "") >= since
        ]
        if len(series) < page:
            return [name for _, name in sorted(found, reverse=True)]
        first += page


def on_change(change, level, resource):
    """Orthanc's events."""
    if change == orthanc.ChangeType.ORTHANC_STARTED:
        threading.Timer(1.0, reconcile).start()
    elif change == orthanc.ChangeType.ORTHANC_STOPPED and _timer is not None:
        _timer.cancel()
    elif change == orthanc.ChangeType.STABLE_SERIES:
        # Not in this thread: it may not wait for a peer.
        threading.Thread(target=send, args=(resource,), daemon=True).start()


orthanc.RegisterOnChangeCallback(on_change)
