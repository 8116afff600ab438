"""The codes our results use: SCT, DCM and UCUM, and five of our own for the regions of lesions.

A private scheme needs an entry in the Coding Scheme Identification Sequence and is read by nobody
else. The regions that multiple sclerosis is judged by have no standard code (the DICOM dictionary
names cerebral white matter, but not which part of it), and programs should count them: so they
have ours, beside the nearest standard site. Elsewhere we say in words what no code says.
"""

from __future__ import annotations

from typing import Final

from pydicom.sr.coding import Code

# --- what is found, and where
MORPHOLOGICALLY_ABNORMAL_STRUCTURE: Final = Code(
    "49755003", "SCT", "Morphologically Abnormal Structure"
)
"""CID 7150, Segmentation Property Categories."""
LESION_OF_BRAIN: Final = Code("301766008", "SCT", "Lesion of brain")
"""CID 7151, Segmentation Property Types. Not DCM 110702 (White Matter T2 Hyperintensity): lesions
of the brain stem and the cortex are found too. No code of a disease: that is the reader's."""
BRAIN: Final = Code("12738006", "SCT", "Brain")
CEREBRAL_WHITE_MATTER: Final = Code("68523003", "SCT", "Cerebral White Matter")
CEREBRAL_HEMISPHERE: Final = Code("372073000", "SCT", "Cerebral hemisphere")
FINDING: Final = Code("121071", "DCM", "Finding")
FINDING_SITE: Final = Code("363698007", "SCT", "Finding Site")
"""CID 7151. No code says "brain stem or cerebellum": such a lesion has the site `BRAIN`."""

# --- our own: how lesions of multiple sclerosis are told apart by place
OWN_SCHEME: Final = "99FLAIRNODE"
OWN_SCHEME_NAME: Final = "flairnode: regions of white matter lesions, approximate"
REGION_OF_LESION: Final = Code("REGION", OWN_SCHEME, "Region of lesion (approximate)")
PERIVENTRICULAR: Final = Code("PERIVENTRICULAR", OWN_SCHEME, "Periventricular")
JUXTACORTICAL: Final = Code("JUXTACORTICAL", OWN_SCHEME, "Juxtacortical or cortical")
INFRATENTORIAL: Final = Code("INFRATENTORIAL", OWN_SCHEME, "Infratentorial")
DEEP_WHITE_MATTER: Final = Code("DEEP_WM", OWN_SCHEME, "Deep white matter")

# --- measurements
VOLUME: Final = Code("118565006", "SCT", "Volume")
LONG_AXIS: Final = Code("103339001", "SCT", "Long axis")
PROBABILITY: Final = Code("122157", "DCM", "Probability")
"""Not Certainty of Finding (111012): a network's softmax is not calibrated."""
NUMBER_OF_LESIONS: Final = Code("246206008", "SCT", "Number of lesions")
MEAN: Final = Code("373098007", "SCT", "Mean")
TOTAL: Final = Code("255619001", "SCT", "Total")

MILLILITRE: Final = Code("ml", "UCUM", "milliliter")
MILLIMETRE: Final = Code("mm", "UCUM", "millimeter")
NO_UNITS: Final = Code("1", "UCUM", "no units")

# --- the report
IMAGING_MEASUREMENT_REPORT: Final = Code("126000", "DCM", "Imaging Measurement Report")
"""OHIF opens a report of this title as measurements. 126001 (Oncology) would be wrong here."""
IMAGING_MEASUREMENTS: Final = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP: Final = Code("125007", "DCM", "Measurement Group")
SUMMARY: Final = Code("121111", "DCM", "Summary")
NARRATIVE_SUMMARY: Final = Code("111412", "DCM", "Narrative Summary")
COMMENT: Final = Code("121106", "DCM", "Comment")
IMAGE_LIBRARY: Final = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP: Final = Code("126200", "DCM", "Image Library Group")
SOURCE: Final = Code("260753009", "SCT", "Source")
MODALITY: Final = Code("121139", "DCM", "Modality")
MAGNETIC_RESONANCE: Final = Code("MR", "DCM", "Magnetic Resonance")
FRAME_OF_REFERENCE_UID: Final = Code("112227", "DCM", "Frame of Reference UID")
TRACKING_IDENTIFIER: Final = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UNIQUE_IDENTIFIER: Final = Code("112040", "DCM", "Tracking Unique Identifier")
REFERENCED_SEGMENT: Final = Code("121191", "DCM", "Referenced Segment")
IMAGE_REGION: Final = Code("111030", "DCM", "Image Region")
IMAGING_PROCEDURE: Final = Code("363679005", "SCT", "Imaging procedure")
"""CID 100. A code for MR of the brain exists in LOINC alone, and the images say it anyway."""

SOURCE_IMAGE_FOR_PROCESSING: Final = Code(
    "121322", "DCM", "Source image for image processing operation"
)
"""CID 7202, Source Image Purposes of Reference."""

# --- how it was made, and how well
ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
"""CID 7162, Surface Processing Algorithm Families."""
PROCESSING_AND_FINDINGS: Final = Code("111017", "DCM", "CAD Processing and Findings Summary")
SUCCEEDED_WITHOUT_FINDINGS: Final = Code(
    "111241", "DCM", "All algorithms succeeded; without findings"
)
SUCCEEDED_WITH_FINDINGS: Final = Code("111242", "DCM", "All algorithms succeeded; with findings")
"""CID 6047: "nothing found" and "not analysed" are different answers."""
NOTHING_SUCCEEDED: Final = Code("111245", "DCM", "No algorithms succeeded; without findings")
"""Of a series that was not analysed. Not 111243 ("Not all algorithms succeeded; without findings"):
that says that some did, and found nothing."""
ALGORITHM_NAME: Final = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION: Final = Code("111003", "DCM", "Algorithm Version")
QUALITY_ASSESSMENT: Final = Code("111050", "DCM", "Quality Assessment")
QUALITY_MET: Final = Code("111237", "DCM", "Usable - Meets the quality control standard")
QUALITY_NOT_MET: Final = Code(
    "111236", "DCM", "Usable - Does not meet the quality control standard"
)
"""CID 6044. The standard is ours (`pipeline.quality`)."""

# --- withdrawn again
REJECTED_FOR_QUALITY: Final = Code("113001", "DCM", "Rejected for Quality Reasons")
REJECTED_FOR_PATIENT_SAFETY: Final = Code("113037", "DCM", "Rejected for Patient Safety Reasons")
"""CID 7011 and 7010, Key Object Selection Document Title (IHE IOCM)."""
