"""What an operator can do about a series that came to its end, by the reason of that end."""

from __future__ import annotations

from node.ledger import (
    CONFLICTING,
    LATER_FLAIR,
    MISSING_FILES,
    MIXED_PATIENT,
    SeriesRow,
    SeriesState,
)
from pipeline.refusals import in_words

_ADVICE = {
    CONFLICTING: "Compare the two objects (spool and spool/conflicts) with the archive: one of "
    "them was changed under the same SOP Instance UID. A result is not made of either until "
    "`flairnode jobs resolve SERIES --keep stored` (the first) or `--keep received` (the later).",
    MIXED_PATIENT: "Find out in the archive whose images these are, and send the study again once "
    "they are of one patient. A result is made of none of them.",
    LATER_FLAIR: "Another FLAIR of this study has a result. `flairnode jobs retry` with this "
    "Series Instance UID analyses this one as well.",
    MISSING_FILES: "Send the whole series again.",
    "incomplete": "Send the rest of the series; it is then decided again by itself.",
    "source-unreachable": "It is decided again once its source answers. A source that is not "
    "followed is asked by `flairnode fetch` with the Study Instance UID.",
    "deleted-at-source": "It was deleted where it was fetched from, perhaps because it was wrong: "
    "ask the archive. If it is stored there again, it is decided again by itself.",
    "destination-unreachable": "Nothing to do: it is tried again, at the latest after "
    "delivery.retry_held_every_s, and at once when the destination answers a C-ECHO.",
    "undeliverable": "See to the destination; then `flairnode jobs retry --all --reason "
    "undeliverable --destination PEER` sends everything that it did not take.",
    "device-unavailable": "See to the GPU (`flairnode check`), or set pipeline.allow_cpu_fallback; "
    "then `flairnode jobs retry --all --reason device-unavailable`.",
    "memory-limit": "Twice it needed more memory than pipeline.memory_limit_mb. A series of "
    "ordinary size that does so is our fault: report it; a very large one may need a higher limit.",
    "time-limit": "Twice it took longer than pipeline.time_limit_s. Was the machine overloaded? A "
    "retry, or a higher limit, may help.",
    "destination-refused": "Ask the administrator of the destination why it refuses; then retry.",
    "no-destination": "Name a destination in the settings; then retry.",
    "no-destination-for-research": "The model is for research only. Mark a destination "
    "`research = true` if it may have such results; then retry.",
    "recalled": "The model was recalled. `flairnode recall` shows what was withdrawn, and "
    "`--reanalyse` queues the series with the model that is configured now.",
    "internal-error": "Our fault: report it with the lines of the log. A retry may help.",
    "poison": "The analysis ended its worker each time: report it with the lines of the log.",
}


def advice(row: SeriesRow) -> str:
    """What an operator can do about a series that came to this end; "" where nothing is to do."""
    if row.state is SeriesState.NOT_ANALYSED:
        return in_words(row.reason).to_do
    return _ADVICE.get(row.reason, "")
